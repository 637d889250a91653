//go:build kafka

package e2e

// The examples for secured clusters, run as a user runs them: as processes, on brokers
// that want TLS and SASL. What can be said of them without such brokers is tested where
// they are.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/certs"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// An exampleRun is a program with what it is told, beside brokers, topic and group.
type exampleRun struct {
	name string
	id   identity // where it connects, and who it is to be there
	args []string
	env  []string

	// refused is in the one line that it says when it is refused; empty: it is not.
	refused string
}

func TestSecuredExamples(t *testing.T) {
	dir := t.TempDir()
	tls, sasl := filepath.Join(dir, "tls"), filepath.Join(dir, "sasl")
	build(t, "../examples", `go build -ldflags="-s -w" -o `+tls+` ./tls`)
	buildImage(t, sasl)
	cluster := startCluster(t, "4.4.0", 1)
	files := writeFiles(t, dir, cluster.CA(), issue(t, cluster.CA(), certs.Template{Name: "billing"}))
	secret := func(text string) string {
		f, err := os.CreateTemp(dir, "secret-")
		require.NoError(t, err)
		_, err = f.WriteString(text + "\n")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		return f.Name()
	}
	for program, runs := range map[string][]exampleRun{
		tls: {
			{name: "flags", id: byCertificate, args: []string{"-ca", files.CA, "-cert", files.Cert, "-key", files.Key}},
			{name: "environment", id: byCertificate, env: []string{"KAFKA_CA=" + files.CA, "KAFKA_CERT=" + files.Cert, "KAFKA_KEY=" + files.Key}},
			{name: "no client certificate wanted", id: byNothing, args: []string{"-ca", files.CA}},
			{name: "no client certificate", id: byCertificate, args: []string{"-ca", files.CA}, refused: "client certificate"},
		},
		sasl: {
			{name: "password in the environment", id: byScram512, args: []string{"-ca", files.CA, "-user", saslUser}, env: []string{"KAFKA_PASSWORD=" + saslPassword}},
			{name: "password in a file", id: byScram256, args: []string{"-ca", files.CA, "-mechanism", "SCRAM-SHA-256", "-user", saslUser, "-secret-file", secret(saslPassword)}},
			{name: "all in the environment", id: byPlain, env: []string{"KAFKA_CA=" + files.CA, "KAFKA_MECHANISM=PLAIN", "KAFKA_USER=" + saslUser, "KAFKA_SECRET_FILE=" + secret(saslPassword)}},
			{name: "token", id: byToken, args: []string{"-ca", files.CA, "-mechanism", "OAUTHBEARER", "-secret-file", secret(kafka.UnsecuredToken(saslUser, time.Hour))}},
			{name: "without TLS", id: byScram512.at(kafka.SASLPlaintext), args: []string{"-protocol", "SASL_PLAINTEXT", "-user", saslUser, "-secret-file", secret(saslPassword)}},
			{name: "wrong password in the environment", id: byScram512, args: []string{"-ca", files.CA, "-user", saslUser}, env: []string{"KAFKA_PASSWORD=wrong-secret"}, refused: refused},
			{name: "wrong password in a file", id: byPlain, args: []string{"-ca", files.CA, "-mechanism", "PLAIN", "-user", saslUser, "-secret-file", secret("wrong-secret")}, refused: refused},
		},
	} {
		for _, r := range runs {
			name := filepath.Base(program) + " " + r.name
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r.run(newEnv(t, scenario{name: "example " + name}, cluster, kgroup.Multiplex), program)
			})
		}
	}
}

func (r exampleRun) run(e *env, program string) {
	e.t.Helper()
	topic := e.topic(4)
	if r.id != byNothing {
		e.restrict(topic, r.id)
	}
	records := e.records(topic, 20)
	e.send(records...)

	cmd := exec.CommandContext(e.ctx, program, append(r.args, "-topic", topic, "-messages", strconv.Itoa(len(records)))...)
	cmd.Env = append(e.named(r.id), r.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if r.refused != "" {
		require.ErrorContains(e.t, err, "exit status 1")
		assert.Empty(e.t, stdout.String())
		assert.Regexp(e.t, `^kgroup: .*`+regexp.QuoteMeta(r.refused)+`.*\n$`, stderr.String(), "one line")
		assert.NotContains(e.t, stderr.String(), "-secret")
		return
	}
	require.NoError(e.t, err, "%s%s", &stdout, &stderr)
	lines := strings.Split(strings.TrimSuffix(stdout.String(), "\n"), "\n")
	assert.ElementsMatch(e.t, printed(records), lines[:len(lines)-1])
	assert.Equal(e.t, "stopped: everything that was handled has been committed", lines[len(lines)-1])
	e.awaitCommitted()
}

// named is what an example finds in its environment, which has nothing else.
func (e *env) named(id identity) []string {
	e.t.Helper()
	return []string{
		"KAFKA_BROKERS=" + strings.Join(e.secured().ListenerAddrs(id.listener), ","),
		"KAFKA_GROUP=" + e.group,
	}
}

// printed are the lines that an example prints of records, once for each.
func printed(records []*kgo.Record) []string {
	var lines []string
	for _, r := range records {
		lines = append(lines, fmt.Sprintf("%s/%d at %d: %s", r.Topic, r.Partition, r.Offset, r.Value))
	}
	return lines
}

func build(t *testing.T, dir, command string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
}

// buildImage makes the program that is in the image of the example with a Dockerfile,
// by the command that stands there.
func buildImage(t *testing.T, program string) {
	t.Helper()
	text, err := os.ReadFile("../examples/sasl/Dockerfile")
	require.NoError(t, err)
	command := regexp.MustCompile(`(?m)^RUN (.* -o )/out/service( .*)$`).FindSubmatch(text)
	require.NotNil(t, command, "%s", text)
	build(t, "..", string(command[1])+program+string(command[2]))
}
