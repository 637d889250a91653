package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
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
	none := settings{group: "kgroup-example-sasl", protocol: "SASL_SSL", mechanism: "SCRAM-SHA-512"}
	all := settings{
		brokers: "a:1,b:2", group: "billing", topic: "orders", protocol: "SASL_PLAINTEXT", ca: "ca.pem",
		mechanism: "PLAIN", user: "alice", secretFile: "secret", messages: 7,
	}
	tests := []struct {
		name string
		env  map[string]string
		args string
		want settings
		says string
	}{
		{name: "nothing", want: none},
		{name: "flags", args: "-brokers a:1,b:2 -group billing -topic orders -protocol SASL_PLAINTEXT -ca ca.pem -mechanism PLAIN -user alice -secret-file secret -messages 7", want: all},
		{
			name: "environment",
			env: map[string]string{"KAFKA_BROKERS": "a:1,b:2", "KAFKA_GROUP": "billing", "KAFKA_TOPIC": "orders", "KAFKA_PROTOCOL": "SASL_PLAINTEXT",
				"KAFKA_CA": "ca.pem", "KAFKA_MECHANISM": "PLAIN", "KAFKA_USER": "alice", "KAFKA_SECRET_FILE": "secret"},
			args: "-messages 7",
			want: all,
		},
		{name: "a password is no flag", args: "-password x", says: "flag provided but not defined"},
		{name: "nor an argument", args: "x", says: "a password is given by -secret-file or KAFKA_PASSWORD"},
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

func TestAuth(t *testing.T) {
	tests := []struct {
		name             string
		mechanism, file  string
		user, password   string
		want, says, left string // what Auth says it is; what config says; what Validate says
	}{
		{name: "PLAIN", mechanism: "PLAIN", user: "alice", password: "x", want: "PLAIN as alice"},
		{name: "PLAIN from a file", mechanism: "PLAIN", user: "alice", file: "secret", want: "PLAIN"},
		{name: "SCRAM-SHA-256", mechanism: "SCRAM-SHA-256", user: "alice", password: "x", want: "SCRAM-SHA-256 as alice"},
		{name: "SCRAM-SHA-512 from a file", mechanism: "SCRAM-SHA-512", user: "alice", file: "secret", password: "ignored", want: "SCRAM-SHA-512"},
		{name: "OAUTHBEARER", mechanism: "OAUTHBEARER", file: "secret", want: "OAUTHBEARER"},
		{name: "OAUTHBEARER without file", mechanism: "OAUTHBEARER", password: "x", says: "-secret-file"},
		{name: "unknown", mechanism: "GSSAPI", says: `"GSSAPI" is unknown`},
		{name: "no user", mechanism: "PLAIN", password: "x", left: "Auth: PLAIN: the user is empty"},
		{name: "no password", mechanism: "SCRAM-SHA-512", user: "alice", left: "Auth: SCRAM-SHA-512: the password is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			environment(t, map[string]string{"KAFKA_PASSWORD": tt.password})
			s := settings{brokers: "a:1,b:2", group: "g", topic: "orders", protocol: "SASL_PLAINTEXT", mechanism: tt.mechanism, user: tt.user, secretFile: tt.file}
			config, err := s.config(kgroup.HandlerFunc(nop))
			if tt.says != "" {
				require.ErrorContains(t, err, tt.says)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, []string{"a:1", "b:2"}, config.Brokers)
			assert.Nil(t, config.TLS)
			if tt.left != "" {
				require.ErrorContains(t, config.Validate(), tt.left)
				return
			}
			require.NoError(t, config.Validate())
			assert.Equal(t, tt.want, config.Auth.String())
		})
	}
}

func TestProtocol(t *testing.T) {
	environment(t, map[string]string{"KAFKA_PASSWORD": "x"})
	s := settings{mechanism: "PLAIN", user: "alice", protocol: "SASL_SSL"}
	config, err := s.config(kgroup.HandlerFunc(nop))
	require.NoError(t, err)
	assert.NotNil(t, config.TLS)
	s.ca = "no/ca.pem"
	_, err = s.config(kgroup.HandlerFunc(nop))
	require.ErrorContains(t, err, "no/ca.pem")
	s.protocol = "SSL"
	_, err = s.config(kgroup.HandlerFunc(nop))
	require.ErrorContains(t, err, `"SSL" is unknown`)
}

// A secret is read each time it is asked for.
func TestSecretFile(t *testing.T) {
	s := settings{user: "alice", secretFile: filepath.Join(t.TempDir(), "secret")}
	_, _, err := s.credentials(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	for _, content := range []string{"one\n", "two", " three \r\n"} {
		require.NoError(t, os.WriteFile(s.secretFile, []byte(content), 0o600))
		user, password, err := s.credentials(t.Context())
		require.NoError(t, err)
		token, _, err := s.token(t.Context())
		require.NoError(t, err)
		want := strings.TrimRight(content, "\r\n")
		assert.Equal(t, []string{"alice", want, want}, []string{user, password, token})
	}
}
