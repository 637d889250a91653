package kgrouptest_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// go-metrics starts it with sarama's first client and never ends it.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// within is the deadline of a wait: longer than anything here takes.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, cfg kgrouptest.Config) *kgrouptest.Broker {
	t.Helper()
	b, err := kgrouptest.New(cfg)
	require.NoError(t, err)
	t.Cleanup(b.Close)
	return b
}

func values(texts ...string) []kgrouptest.Record {
	var records []kgrouptest.Record
	for _, text := range texts {
		records = append(records, kgrouptest.Record{Value: []byte(text)})
	}
	return records
}

// texts are the values of all messages of a topic, by partition.
func texts(t *testing.T, b *kgrouptest.Broker, topic string) map[int32][]string {
	t.Helper()
	messages, err := b.Messages(topic)
	require.NoError(t, err)
	found := make(map[int32][]string)
	for _, m := range messages {
		found[m.Partition] = append(found[m.Partition], string(m.Value))
	}
	return found
}
