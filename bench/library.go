//go:build unix

package main

// The libraries: what there is to compare kgroup with, used as its documentation says
// and, where that leaves a choice, the fastest way that handles every message at least
// once.

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
)

// A library makes this process a member of a group.
type library struct {
	module    string // its version is reported; empty: there is none
	guarantee string // what is handled how often, in which order, and committed when
	join      func(ctx context.Context, j job, m *meter) (leave func() error, err error)
}

func libraries() map[string]library {
	return map[string]library{
		"kgroup":    {"github.com/kgroup-go/kgroup", "at least once; in order within a partition; marked when the handler returns nil, committed every second and before a partition is given up; a rebalance waits for handlers", joinKgroup},
		"raw":       {"github.com/bsm/sarama-cluster", "at least once while no rebalance or failed commit comes in between; in order within a partition; marked after handling, committed every second and before a partition is given up; a rebalance waits a fixed time for handlers", joinRaw},
		"workers":   {"github.com/kgroup-go/kgroup", "with Workers: at least once; in order within a key; marked when the handler returns nil and nothing before it is left, committed every second and before a partition is given up; a rebalance waits for handlers", joinKgroup},
		"hash":      {"github.com/bsm/sarama-cluster", "with a fixed hash of keys onto goroutines: at least once while no rebalance or failed commit comes in between; in order within a key; marked when nothing before it is left, committed every second and before a partition is given up; a rebalance waits a fixed time for handlers", joinHash},
		"no-order":  {"github.com/bsm/sarama-cluster", "as many goroutines read one channel: in no order, and what is marked may lie behind what is not handled: what the engine allows", joinNoOrder},
		"bare":      {"", "a loop around the handler, without messages: what can be reached", joinBare},
		"sarama":    {"github.com/IBM/sarama", "at least once; in order within a partition; marked after handling, committed every second and at the end of a session; a rebalance waits for handlers", joinSarama},
		"franz-go":  {"github.com/twmb/franz-go", "at least once; in order within a partition; a poll is committed once the next one has begun, every second and before a partition is given up; a rebalance waits for no handler", joinFranz},
		"kafka-go":  {"github.com/segmentio/kafka-go", "at least once; in order within a partition; committed after handling, every second; a rebalance waits for no handler", joinKafkaGo},
		"watermill": {"github.com/ThreeDotsLabs/watermill-kafka/v3", "at least once; in order within a partition, which waits for each acknowledgement; committed every second and at the end of a session", joinWatermill},
	}
}

// String is the module and its version in this program.
func (l library) String() string {
	if l.module == "" {
		return "no library"
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == l.module {
				return m.Path + " " + m.Version
			}
		}
	}
	return l.module
}

// complain is what becomes of the errors that a library reports and survives.
func complain(err error) { fmt.Fprintln(os.Stderr, "contender:", err) }
