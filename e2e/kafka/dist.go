package kafka

// The jars of one Kafka release. Kafka's broker is an ordinary Maven artifact, so
// Maven fetches it with everything it depends on; what it fetched is kept in a
// cache folder by version. cluster.go starts brokers from it.

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

const minJava = 17

// A release says what is particular about one version of Kafka.
type release struct {
	scala     string // the Scala version in the artifact's name
	zooKeeper string // the release whose jars bring ZooKeeper; empty: KRaft

	authorizer string // the class; empty: that of KRaft
	early      bool   // what came later in security.go is missing
}

// ZooKeeper 3.4, which belongs to Kafka 1.1, does not start on Java 17. The broker
// does, and speaks to a newer ZooKeeper as well.
var releases = map[string]release{
	"4.4.0": {scala: "2.13"},
	"4.1.0": {scala: "2.13"},
	"4.0.1": {scala: "2.13"},
	"4.0.0": {scala: "2.13"},
	"3.9.1": {scala: "2.13"},
	"2.8.2": {scala: "2.13", zooKeeper: "2.8.2", authorizer: "kafka.security.authorizer.AclAuthorizer"},
	"1.1.1": {scala: "2.12", zooKeeper: "2.8.2", authorizer: "kafka.security.auth.SimpleAclAuthorizer", early: true},
}

// Versions lists the releases that [Install] and [Start] know, oldest first.
func Versions() []string { return slices.Sorted(maps.Keys(releases)) }

// A Dist is a Kafka release on this machine, ready to be started.
type Dist struct {
	Version string
	Libs    string // the folder with its jars
}

// Install makes a Kafka release available: it takes the jars from the cache, or
// has Maven fetch them (about 45 MB). The cache is the folder named by the
// environment variable KGROUP_KAFKA_CACHE or else kgroup/kafka in
// [os.UserCacheDir]. Any number of processes may install at once; an interrupted
// one leaves nothing that is taken for complete.
func Install(ctx context.Context, version string) (Dist, error) {
	rel, ok := releases[version]
	if !ok {
		return Dist{}, fmt.Errorf("install Kafka %s: unknown version, have %s", version, strings.Join(Versions(), ", "))
	}
	if err := checkJava(ctx); err != nil {
		return Dist{}, err
	}
	cache, err := cacheDir()
	if err != nil {
		return Dist{}, fmt.Errorf("install Kafka %s: %w", version, err)
	}
	dist := Dist{Version: version, Libs: filepath.Join(cache, version)}
	if installed(dist) {
		return dist, nil
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, version+".lock"))
	if err != nil {
		return Dist{}, fmt.Errorf("install Kafka %s: lock the cache: %w", version, err)
	}
	defer unlock()
	if installed(dist) { // by whoever held the lock before us
		return dist, nil
	}
	if err := fetch(ctx, rel, dist); err != nil {
		return Dist{}, fmt.Errorf("install Kafka %s: %w", version, err)
	}
	return dist, nil
}

func cacheDir() (string, error) {
	dir := os.Getenv("KGROUP_KAFKA_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "kgroup", "kafka")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// A folder with its final name is complete: it got the name in one rename.
func installed(d Dist) bool {
	info, err := os.Stat(d.Libs)
	return err == nil && info.IsDir()
}

//go:embed pom.xml.tmpl
var pomText string

var pom = template.Must(template.New("pom.xml").Parse(pomText))

// fetch has Maven copy the jars beside their place, then moves them there.
func fetch(ctx context.Context, rel release, d Dist) error {
	if _, err := exec.LookPath("mvn"); err != nil {
		return errors.New("real Kafka tests need Java 17 or later and Maven: mvn not found in PATH")
	}
	tmp, err := os.MkdirTemp(filepath.Dir(d.Libs), d.Version+".tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	var text bytes.Buffer
	if err := pom.Execute(&text, map[string]string{"Scala": rel.scala, "Version": d.Version}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "pom.xml"), text.Bytes(), 0o644); err != nil {
		return err
	}
	libs := filepath.Join(tmp, "libs")
	mvn := exec.CommandContext(ctx, "mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory="+libs)
	mvn.Dir = tmp
	if out, err := mvn.CombinedOutput(); err != nil {
		return fmt.Errorf("mvn dependency:copy-dependencies: %w\n%s", err, lastLines(out))
	}
	if err := os.Rename(libs, d.Libs); err != nil {
		return fmt.Errorf("mvn dependency:copy-dependencies succeeded without giving jars: %w", err)
	}
	return nil
}

var javaVersion = regexp.MustCompile(`version "(?:1\.)?(\d+)`) // 1.8.0_292 is Java 8

// checkJava tells what is missing before a broker fails for a stranger reason.
func checkJava(ctx context.Context) error {
	const need = "real Kafka tests need Java 17 or later and Maven: "
	if _, err := exec.LookPath("java"); err != nil {
		return errors.New(need + "java not found in PATH")
	}
	out, err := exec.CommandContext(ctx, "java", "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf(need+"java -version: %w\n%s", err, lastLines(out))
	}
	m := javaVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf(need+"java -version says:\n%s", lastLines(out))
	}
	if v, err := strconv.Atoi(string(m[1])); err != nil || v < minJava {
		return fmt.Errorf(need+"the java in PATH is version %s", m[1])
	}
	return nil
}
