package main

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kgroup-go/kgroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func nop(context.Context, kgroup.Message) error { return nil }

// environment is all that a program finds of Kafka in its environment.
func environment(t *testing.T, set map[string]string) {
	t.Helper()
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "KAFKA_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range set {
		t.Setenv(name, value)
	}
}

func TestParse(t *testing.T) {
	all := settings{
		brokers: "a:1,b:2", group: "billing", topic: "orders", serverName: "kafka", messages: 7,
		files: kgroup.TLSFiles{CA: "ca.pem", Cert: "client.pem", Key: "client.key"},
	}
	tests := []struct {
		name string
		env  map[string]string
		args string
		want settings
		says string
	}{
		{name: "nothing", want: settings{group: "kgroup-example-tls"}},
		{name: "flags", args: "-brokers a:1,b:2 -group billing -topic orders -ca ca.pem -cert client.pem -key client.key -server-name kafka -messages 7", want: all},
		{
			name: "environment",
			env: map[string]string{"KAFKA_BROKERS": "a:1,b:2", "KAFKA_GROUP": "billing", "KAFKA_TOPIC": "orders", "KAFKA_CA": "ca.pem",
				"KAFKA_CERT": "client.pem", "KAFKA_KEY": "client.key", "KAFKA_SERVER_NAME": "kafka"},
			args: "-messages 7",
			want: all,
		},
		{name: "a flag beats the environment", env: map[string]string{"KAFKA_TOPIC": "refunds"}, args: "-topic orders", want: settings{group: "kgroup-example-tls", topic: "orders"}},
		{name: "unknown flag", args: "-password x", says: "flag provided but not defined"},
		{name: "no flag", args: "orders", says: "belongs to no flag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			environment(t, tt.env)
			got, err := parse(strings.Fields(tt.args))
			if tt.says != "" {
				require.ErrorContains(t, err, tt.says)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
	_, err := parse([]string{"-h"})
	require.ErrorIs(t, err, flag.ErrHelp)
}

func TestConfig(t *testing.T) {
	config, err := settings{brokers: "a:1,b:2", group: "g", topic: "orders", serverName: "kafka"}.config(kgroup.HandlerFunc(nop))
	require.NoError(t, err)
	require.NoError(t, config.Validate())
	assert.Equal(t, []string{"a:1", "b:2"}, config.Brokers)
	assert.Contains(t, config.Topics, "orders")
	assert.Equal(t, "kafka", config.TLS.ServerName)

	_, err = settings{files: kgroup.TLSFiles{CA: "no/ca.pem"}}.config(kgroup.HandlerFunc(nop))
	require.ErrorContains(t, err, "no/ca.pem")
	require.ErrorContains(t, run(nil), "Brokers: is empty")
}
