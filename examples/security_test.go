package examples

// What can be said of the secured examples without a secured broker: how they are
// built into an image, and whom they trust where the system trusts nobody.

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// dockerfile returns the instructions of each stage, by its name; the last stage has
// none.
func dockerfile(t *testing.T, path string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	stages := make(map[string][]string)
	var stage string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if from := regexp.MustCompile(`^FROM \S+(?: AS (\w+))?$`).FindStringSubmatch(line); from != nil {
			stage = from[1]
		}
		if line != "" && !strings.HasPrefix(line, "#") {
			stages[stage] = append(stages[stage], line)
		}
	}
	return stages
}

// The build stage's command is run as it stands, except for where its result goes: it
// must be a program that needs nothing of its image.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	stages := dockerfile(t, filepath.Join("sasl", "Dockerfile"))
	require.Len(t, stages, 2)
	build, image := stages["build"], stages[""]
	require.Len(t, build, 4)
	require.Equal(t, []string{"WORKDIR /src", "COPY . ."}, build[1:3], "the context is the root of the repository")
	command, found := strings.CutPrefix(build[3], "RUN ")
	require.True(t, found, build[3])

	const result = "/out/service"
	require.Contains(t, command, " -o "+result+" ")
	binary := filepath.Join(t.TempDir(), "service")
	sh := exec.CommandContext(t.Context(), "sh", "-euc", strings.Replace(command, result, binary, 1))
	sh.Dir = ".."
	out, err := sh.CombinedOutput()
	require.NoError(t, err, "%s", out)

	help, err := exec.CommandContext(t.Context(), binary, "-h").CombinedOutput()
	require.NoError(t, err, "%s", help)
	assert.Contains(t, string(help), "KAFKA_BROKERS")
	if runtime.GOOS == "linux" {
		program, err := elf.Open(binary)
		require.NoError(t, err)
		defer program.Close()
		libraries, err := program.ImportedLibraries()
		require.NoError(t, err)
		assert.Empty(t, libraries, "static")
		for _, p := range program.Progs {
			assert.NotEqual(t, elf.PT_INTERP, p.Type, "static")
		}
	}

	assert.Contains(t, image, "RUN apk add --no-cache ca-certificates")
	assert.Contains(t, image, "COPY --from=build "+result+" /usr/local/bin/service")
	assert.Contains(t, image, "USER 10001:10001")
	assert.Equal(t, `ENTRYPOINT ["/usr/local/bin/service"]`, image[len(image)-1])
}

// Where the system has no root certificates, a program that imports x509roots/fallback
// verifies brokers all the same, and gets as far as connecting; one that does not says
// what is missing instead of "unknown authority".
func TestWithoutSystemRoots(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		example string
		args    []string
		says    string
	}{
		{"tls", []string{"-topic", "orders"}, "127.0.0.1:1"},
		{"sasl", []string{"-topic", "orders", "-user", "alice"}, "kgroup: load TLS files: no CA is named, and the operating system has no root certificates"},
	} {
		t.Run(tt.example, func(t *testing.T) {
			t.Parallel()
			cmd := command(t, tt.example, "127.0.0.1:1") // nobody is there
			cmd.Args = append(cmd.Args, tt.args...)
			cmd.Env = append(cmd.Env, "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent", "KAFKA_PASSWORD=secret")
			out, err := cmd.CombinedOutput()
			require.ErrorContains(t, err, "exit status 1")
			assert.Contains(t, string(out), tt.says)
			assert.NotContains(t, string(out), "secret")
		})
	}
}
