package history

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		writeUntilKilled(path)
	}
	goleak.VerifyTestMain(m)
}

type fakeT struct {
	testing.TB
	failed bool
}

func (f *fakeT) Fatal(...any)          { f.failed = true; runtime.Goexit() }
func (f *fakeT) Fatalf(string, ...any) { f.Fatal() }

// record tells one event of each kind.
func record(l *Log) {
	l.Produced("t", 1, 2, []byte("k"))
	l.NotOwed("t", 1, 1)
	l.Begin("a", "t", 1, 2, []byte("")).End(errors.New("no"))
	_ = l.Handle("a", "t", 1, 2, nil, func() error { return nil })
	for _, a := range l.BeginBatch("a", []Message{{"t", 1, 2, nil}, {"t", 1, 5, []byte("k")}}) {
		a.End(nil)
	}
	l.Bad("t", 1, 2)
	l.Blocked("a", "t", 1, 2)
	l.DeadLettered("a", "t", 1, 2)
	l.Letter("t", 1, 2, []byte("k"), Place{"t.dlq", 3, 4})
	l.Committed("a", map[string]map[int32]int64{"t": {1: 3, 0: 4}})
	l.SessionLost("a")
	l.SessionBack("a")
	l.Outlived("a", "t", 1)
	l.Killed("a")
	l.FinalCommitted(map[string]map[int32]int64{"t": {1: 3}})
}

var recorded = []Event{
	{Kind: Produced, Topic: "t", Partition: 1, Offset: 2, Key: []byte("k")},
	{Kind: NotOwed, Topic: "t", Partition: 1, Offset: 1},
	{Kind: Begin, Member: "a", Topic: "t", Partition: 1, Offset: 2, Key: []byte(""), Attempt: 1},
	{Kind: End, Member: "a", Topic: "t", Partition: 1, Offset: 2, Key: []byte(""), Attempt: 1, Err: "no"},
	{Kind: Begin, Member: "a", Topic: "t", Partition: 1, Offset: 2, Attempt: 2},
	{Kind: End, Member: "a", Topic: "t", Partition: 1, Offset: 2, Attempt: 2},
	{Kind: Begin, Member: "a", Topic: "t", Partition: 1, Offset: 2, Attempt: 3, Batch: 1},
	{Kind: Begin, Member: "a", Topic: "t", Partition: 1, Offset: 5, Key: []byte("k"), Attempt: 4, Batch: 1},
	{Kind: End, Member: "a", Topic: "t", Partition: 1, Offset: 2, Attempt: 3},
	{Kind: End, Member: "a", Topic: "t", Partition: 1, Offset: 5, Key: []byte("k"), Attempt: 4},
	{Kind: Bad, Topic: "t", Partition: 1, Offset: 2},
	{Kind: Blocked, Member: "a", Topic: "t", Partition: 1, Offset: 2},
	{Kind: DeadLettered, Member: "a", Topic: "t", Partition: 1, Offset: 2},
	{Kind: Letter, Topic: "t", Partition: 1, Offset: 2, Key: []byte("k"), Place: &Place{"t.dlq", 3, 4}},
	{Kind: Committed, Member: "a", Topic: "t", Partition: 0, Offset: 4, Batch: 2},
	{Kind: Committed, Member: "a", Topic: "t", Partition: 1, Offset: 3, Batch: 2},
	{Kind: SessionLost, Member: "a"},
	{Kind: SessionBack, Member: "a"},
	{Kind: Outlived, Member: "a", Topic: "t", Partition: 1},
	{Kind: Killed, Member: "a"},
	{Kind: FinalCommitted, Topic: "t", Partition: 1, Offset: 3},
}

func TestLog(t *testing.T) {
	timeless := func(events []Event) []Event {
		events = slices.Clone(events)
		require.True(t, slices.IsSortedFunc(events, func(x, y Event) int { return int(x.At - y.At) }))
		for i := range events {
			assert.Positive(t, events[i].At)
			events[i].At = 0
		}
		return events
	}
	t.Run("memory", func(t *testing.T) {
		l := New()
		record(l)
		require.NoError(t, l.Close())
		assert.Equal(t, recorded, timeless(l.Events()))
	})
	t.Run("file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "history")
		f, err := Append(path)
		require.NoError(t, err)
		l := New()
		l.Produced("t", 1, 1, nil)
		record(f)
		l.Produced("t", 1, 3, nil)
		require.NoError(t, f.Close())
		require.NoError(t, l.Merge(path))
		got := timeless(l.Events())
		assert.Equal(t, recorded, got[1:len(got)-1], "between what happened before and after")
	})
}

func TestHandleTellsOfErrorsAndPanics(t *testing.T) {
	l := New()
	boom := errors.New("boom")
	require.ErrorIs(t, l.Handle("a", "t", 0, 0, nil, func() error { return boom }), boom)
	require.PanicsWithValue(t, "oh", func() { _ = l.Handle("a", "t", 0, 1, nil, func() error { panic("oh") }) })
	require.Error(t, l.Handle("a", "t", 0, 2, nil, func() error { return errors.New("") }))
	events := l.Events()
	assert.Equal(t, "boom", events[1].Err)
	assert.Equal(t, "panic", events[3].Err)
	assert.NotEmpty(t, events[5].Err)
}

func TestLogsShareAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	const logs, writers, each = 3, 4, 50
	var wg sync.WaitGroup
	for i := range logs {
		l, err := Append(path)
		require.NoError(t, err)
		defer l.Close()
		for range writers {
			wg.Go(func() {
				for o := range int64(each) {
					_ = l.Handle(fmt.Sprint("member", i), "t", 0, o, []byte(strings.Repeat("k", 100)), func() error { return nil })
				}
			})
		}
	}
	wg.Wait()
	events, err := Read(path)
	require.NoError(t, err)
	assert.Len(t, events, 2*logs*writers*each)
	assert.Zero(t, Check(events, Rules{}).Count(Malformed))
}

func TestRead(t *testing.T) {
	const line = `{"at":1,"kind":"killed","member":"a","key":null}` + "\n"
	tests := []struct {
		name, text, want string
		events           int
	}{
		{"empty", "", "", 0},
		{"killed while writing", line + line[:20], "", 1},
		{"damaged", line + "{}}\n" + line, "line 2", 0},
		{"something else", line + `{"price":1}` + "\n", "line 2", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "history")
			require.NoError(t, os.WriteFile(path, []byte(tt.text), 0o600))
			events, err := Read(path)
			if tt.want != "" {
				require.ErrorContains(t, err, tt.want)
				return
			}
			require.NoError(t, err)
			assert.Len(t, events, tt.events)
		})
	}
	require.ErrorIs(t, New().Merge(filepath.Join(t.TempDir(), "none")), os.ErrNotExist)
}

func TestALogThatCannotWritePanics(t *testing.T) {
	l, err := Append(filepath.Join(t.TempDir(), "history"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Panics(t, func() { l.Killed("a") })
}

// writerEnv makes the test binary a member that tells its history to the file
// named by it, and each event to its parent, until it is killed.
const writerEnv = "KGROUP_TEST_HISTORY"

func writeUntilKilled(path string) {
	l, err := Append(path)
	if err != nil {
		panic(err)
	}
	for o := int64(0); ; o++ {
		l.Begin("child", "t", 0, o, nil)
		fmt.Println(o)
	}
}

func TestAKilledProcessLeavesWhatItDid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	l := New()
	l.Produced("before", 0, 0, nil)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), writerEnv+"="+path)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewScanner(out)
	const seen = 1000
	for range seen {
		require.True(t, lines.Scan())
	}
	require.NoError(t, child.Process.Kill())
	_ = child.Wait()
	l.Killed("child")

	require.NoError(t, l.Merge(path))
	events := l.Events()
	assert.GreaterOrEqual(t, len(events), seen+2)
	assert.Equal(t, "before", events[0].Topic, "one clock for all processes")
	assert.Equal(t, Killed, events[len(events)-1].Kind, "one clock for all processes")
	for i, e := range events[1 : len(events)-1] {
		require.Equal(t, int64(i), e.Offset)
	}
}
