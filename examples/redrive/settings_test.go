package main

// What needs no broker: flags, headers, and where a letter goes.

import (
	"bytes"
	"encoding/binary"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
)

func TestParse(t *testing.T) {
	t.Setenv("KAFKA_BROKERS", "a:1,b:2")
	t.Setenv("KAFKA_TOPIC", "orders.dlq")
	s, err := parse(nil, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"a:1", "b:2"}, s.brokers)
	assert.Equal(t, "orders.dlq.redrive", s.group)
	assert.Equal(t, "PLAINTEXT", s.security.protocol)
	assert.Equal(t, []any{10.0, 3, -1, false}, []any{s.rate, s.maxRedrives, s.partition, s.replay})

	s, err = parse(strings.Fields("-brokers c:3 -topic x -group g -protocol SSL -replay -rate 0.5 -from 12 -to 2026-03-29T02:00:00Z -key= -error a|b"), io.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"c:3", "x", "g", "SSL", "12", "2026-03-29T02:00:00Z", "", "a|b"},
		[]string{s.brokers[0], s.topic, s.group, s.security.protocol, s.from.String(), s.to.String(), *s.key, s.reason.String()})

	for args, says := range map[string]string{
		"orders.dlq":           `"orders.dlq" belongs to no flag`,
		"-password x":          "flag provided but not defined",
		"-from yesterday":      "is no offset (120), time (2026-03-29T02:00:00Z) or time ago (90m)",
		"-error (":             "missing closing )",
		"-brokers ,":           "no brokers: name them with -brokers or KAFKA_BROKERS",
		"-topic=":              "no dead-letter topic: name it with -topic or KAFKA_TOPIC",
		"-to-topic orders.dlq": "-to-topic is the dead-letter topic itself",
		"-rate -1":             "-rate -1 is no rate",
		"-rate NaN":            "is no rate",
		"-limit -1":            "-limit -1 is negative",
		"-max-redrives 0":      "use at least 1",
		"-max-age -1h":         "-max-age -1h0m0s is negative",
		"-progress 0":          "-progress 0s is no time",
	} {
		_, err := parse(strings.Fields(args), io.Discard)
		assert.ErrorContains(t, err, says, args)
	}
	var help bytes.Buffer
	_, err = parse([]string{"-h"}, &help)
	require.ErrorIs(t, err, flag.ErrHelp)
	assert.Contains(t, help.String(), "-max-redrives")
}

func TestSecurity(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte(" token \r\n"), 0o600))
	for _, tt := range []struct {
		s    security
		want string // what kgroup says it is
	}{
		{security{mechanism: "PLAIN"}, "PLAIN"},
		{security{mechanism: "SCRAM-SHA-256"}, "SCRAM-SHA-256"},
		{security{mechanism: "SCRAM-SHA-512"}, "SCRAM-SHA-512"},
		{security{mechanism: "OAUTHBEARER"}, "OAUTHBEARER"},
	} {
		tt.s.protocol, tt.s.secretFile = "SASL_PLAINTEXT", file
		config, opts, err := tt.s.options()
		require.NoError(t, err)
		assert.Equal(t, tt.want, config.Auth.String())
		assert.Nil(t, config.TLS)
		assert.Len(t, opts, 1)
		_, mechanism, err := tt.s.auth()
		require.NoError(t, err)
		assert.Equal(t, tt.want, mechanism.Name())
	}
	secret, err := security{secretFile: file}.secret()
	require.NoError(t, err)
	assert.Equal(t, " token ", secret)
	_, err = security{}.secret()
	require.EqualError(t, err, "no secret: name its file with -secret-file, or set KAFKA_PASSWORD")

	config, opts, err := security{protocol: "SSL", serverName: "kafka"}.options()
	require.NoError(t, err)
	assert.Equal(t, "kafka", config.TLS.ServerName)
	assert.Nil(t, config.Auth)
	assert.Len(t, opts, 1)
	_, _, err = security{protocol: "SASL"}.options()
	require.ErrorContains(t, err, `protocol "SASL" is unknown`)
	_, _, err = security{protocol: "SSL", files: kgroup.TLSFiles{CA: "no/ca.pem"}}.options()
	require.ErrorContains(t, err, "no/ca.pem")
}

func TestReadLetter(t *testing.T) {
	stamp := time.UnixMilli(1_700_000_000_000)
	header := func(key string, value string) kgroup.Header {
		return kgroup.Header{Key: key, Value: []byte(value)}
	}
	spring := header("kafka_dlt-original-topic", "refunds")
	kgroups := header("kgroup-origin-topic", "orders")
	long := func(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }
	tests := []struct {
		name    string
		headers []kgroup.Header
		want    letter
	}{
		{name: "none", want: letter{origin: origin0("")}},
		{name: "a topic only", headers: []kgroup.Header{kgroups}, want: letter{origin: origin0("orders")}},
		{name: "an empty topic", headers: []kgroup.Header{header("kgroup-origin-topic", "")}, want: letter{origin: origin0("")}},
		{
			name: "the last service counts", headers: []kgroup.Header{kgroups, header("kgroup-error", "old"), spring, header("kafka_dlt-exception-message", "new")},
			want: letter{origin: origin0("refunds"), reason: "new"},
		},
		{name: "the other way round", headers: []kgroup.Header{spring, kgroups}, want: letter{origin: origin0("orders")}},
		{
			name: "damaged numbers",
			headers: []kgroup.Header{kgroups, header("kgroup-origin-partition", "-3"), header("kgroup-origin-offset", "x"),
				header("kgroup-origin-timestamp", "yesterday"), header(countHeader, "many")},
			want: letter{origin: origin0("orders"), countless: true},
		},
		{name: "a partition that is none", headers: []kgroup.Header{kgroups, header("kgroup-origin-partition", "4294967296")}, want: letter{origin: origin0("orders")}},
		{name: "a negative count", headers: []kgroup.Header{header(countHeader, "-1")}, want: letter{origin: origin0(""), redrives: -1, countless: true}},
		{
			name: "Spring's numbers",
			headers: []kgroup.Header{spring, header("kafka_dlt-original-partition", "\x00\x00\x00\x07"), header("kafka_dlt-original-offset", long(1<<40)),
				header("kafka_dlt-original-timestamp", long(uint64(stamp.UnixMilli())-5)), header(countHeader, "2")},
			want: letter{origin: origin{"refunds", 7, 1 << 40}, sent: stamp.Add(-5 * time.Millisecond), redrives: 2},
		},
		{name: "numbers that Spring does not write", headers: []kgroup.Header{spring, header("kafka_dlt-original-partition", "7")}, want: letter{origin: origin0("refunds")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.msg = kgroup.Message{Timestamp: stamp, Headers: tt.headers}
			tt.want.failed = stamp
			if tt.want.sent.IsZero() {
				tt.want.sent = stamp
			}
			assert.Equal(t, tt.want, readLetter(tt.want.msg))
		})
	}
}

func origin0(topic string) origin { return origin{topic, -1, -1} }

func TestPartitionIn(t *testing.T) {
	at := func(number int32, key []byte) letter {
		return letter{msg: kgroup.Message{Partition: 1, Key: key}, origin: origin{partition: number}}
	}
	tests := []struct {
		name   string
		letter letter
		count  int32
		want   int32
	}{
		{name: "its own", letter: at(5, []byte("k")), count: 6, want: 5},
		{name: "no key, and no such partition", letter: at(5, nil), count: 3, want: 2},
		{name: "not known: the letter's", letter: at(-1, nil), count: 3, want: 1},
		{name: "a key, and no such partition: as Java's producer", letter: at(5, []byte("21")), count: 3, want: 0}, // murmur2("21") is -973932308 (Kafka's UtilsTest)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { assert.Equal(t, tt.want, tt.letter.partitionIn("orders", tt.count)) })
	}
}

func TestDecide(t *testing.T) {
	p := &plan{
		settings: settings{topic: "orders.dlq", maxRedrives: 3},
		targets:  map[string]int32{"orders": 2},
		written:  map[string]bool{"orders.dlq/0/7@1700000000000": true},
	}
	from := func(topic string) letter {
		return letter{msg: kgroup.Message{Topic: "orders.dlq", Offset: 1, Timestamp: time.UnixMilli(1_700_000_000_000)}, origin: origin{topic: topic, partition: 1}}
	}
	counted := func(l letter, redrives int) letter { l.redrives = redrives; return l }
	countless, done := from("orders"), from("orders")
	countless.countless, done.msg.Offset = true, 7
	namesake := done
	namesake.msg.Timestamp = namesake.msg.Timestamp.Add(time.Hour)
	for _, tt := range []struct {
		name   string
		letter letter
		want   verdict
	}{
		{"first time", from("orders"), replays},
		{"last time", counted(from("orders"), 2), replays},
		{"once too often", counted(from("orders"), 3), returning},
		{"nobody knows how often", countless, returning},
		{"from nowhere", from(""), astray},
		{"from itself", from("orders.dlq"), astray},
		{"done", done, there},
		{"of a topic that was deleted, and made anew", namesake, replays},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, why, to := p.decide(tt.letter)
			assert.Equal(t, tt.want, v)
			assert.Equal(t, v == replays, why == "")
			if v == replays {
				assert.Equal(t, target{"orders", 1}, to)
			}
		})
	}
}
