//go:build kafka

package e2e

// The image of examples/sasl, without an engine for images: a root that has only the
// program and the CA of the brokers. Of Linux, as images are.

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/certs"
)

// imageUser is USER in the Dockerfile.
const imageUser = 10001

// The program needs nothing else of its image, and ends as an orchestrator ends it,
// with SIGTERM.
func TestImage(t *testing.T) {
	root := t.TempDir()
	buildImage(t, filepath.Join(root, "service"))
	e := newEnv(t, scenario{name: "image"}, startCluster(t, "4.4.0", 1), kgroup.Multiplex)
	require.NoError(t, certs.Replace(filepath.Join(root, "ca.pem"), e.secured().CA().PEM()))
	require.NoError(t, os.Chmod(filepath.Join(root, "ca.pem"), 0o644)) // the program is another user
	topic := e.topic(4)
	e.restrict(topic, byScram512)
	records := e.records(topic, 20)
	e.send(records...)

	cmd := exec.CommandContext(e.ctx, "/service")
	confine(cmd, root)
	cmd.Env = append(e.named(byScram512), "KAFKA_TOPIC="+topic, "KAFKA_CA=/ca.pem", "KAFKA_USER="+saslUser, "KAFKA_PASSWORD="+saslPassword)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start(), "a chroot as root, or else in a user namespace, which the system must allow")
	var lines []string
	for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
		if lines = append(lines, scanner.Text()); len(lines) == len(records) {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		}
	}
	require.NoError(t, cmd.Wait(), "%s\n%s", lines, &stderr)
	assert.ElementsMatch(t, append(printed(records), "stopped: everything that was handled has been committed"), lines)
	assert.Empty(t, stderr.String())
	e.awaitCommitted()
}

// confine makes dir the root of a process, which runs as the user of the image. Who is
// not root can do it in a user namespace.
func confine(cmd *exec.Cmd, dir string) {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: imageUser, Gid: imageUser}
		return
	}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: imageUser, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: imageUser, HostID: os.Getgid(), Size: 1}}
}
