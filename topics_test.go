package kgroup

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMatch(t *testing.T) {
	m := newMatcher(Topics{
		"orders":             {Queue: 1},
		"__consumer_offsets": {Queue: 2},
		"^orders":            {Queue: 3},
		"^refunds-":          {Queue: 4},
		"^.*-eu$":            {Queue: 5},
	})
	for topic, want := range map[string]string{
		"orders":              "orders", // a name beats a pattern
		"orders-us":           "^orders",
		"refunds-us":          "^refunds-",
		"payments-eu":         "^.*-eu$",
		"payments":            "",
		"__consumer_offsets":  "__consumer_offsets",
		"__transaction-eu":    "", // internal: no pattern matches it
		"_private-eu":         "^.*-eu$",
		"^orders":             "", // a pattern's own text is not its name
		"":                    "",
		"my-orders":           "",
		"__consumer_offsets2": "",
	} {
		t.Run(topic, func(t *testing.T) {
			entry, name, err := m.match(topic)
			require.NoError(t, err)
			assert.Equal(t, want, name)
			assert.Equal(t, m.topics[want].Queue, entry.Queue)
		})
	}

	_, _, err := m.match("orders-eu")
	require.Error(t, err)
	assert.Contains(t, err.Error(), `"orders-eu"`)
	assert.Contains(t, err.Error(), `Topics["^orders"]`)
	assert.Contains(t, err.Error(), `Topics["^.*-eu$"]`)
}

// A dead-letter topic belongs to no pattern: what could not be handled would be handled
// again, and its own dead letters would come back. It may be named.
func TestDeadLetterTopicsMatchNoPattern(t *testing.T) {
	topics := Topics{
		"^orders":      {Queue: 1, DeadLetter: "orders.dlq"},
		"refunds":      {Queue: 2, DeadLetter: "orders.named"},
		"^.*[.]dlq$":   {Queue: 3},
		"orders.named": {Queue: 4},
	}
	m := newMatcher(topics)
	for topic, queue := range map[string]int{"orders.dlq": 0, "orders-dlq": 1, "refunds.dlq": 3, "orders.named": 4} {
		entry, _, err := m.match(topic)
		require.NoError(t, err)
		assert.Equal(t, queue, entry.Queue, topic)
		assert.Equal(t, topic == "orders.dlq" || topic == "orders.named", m.blacklist().MatchString(topic), topic)
	}
	assert.True(t, m.blacklist().MatchString("__consumer_offsets"))
	assert.False(t, m.blacklist().MatchString("ordersxdlq"), "a dot is a dot")
	assert.Equal(t, []string{"^.*[.]dlq$", "^orders"}, m.unmatched([]string{"orders.dlq", "orders.named"}))
	require.Len(t, overlaps(topics), 1)
	assert.NotEqual(t, "orders.dlq", overlaps(topics)[0].witness)
}

func TestMatcherLists(t *testing.T) {
	m := newMatcher(Topics{"b": {}, "a": {}, "^z": {}, "^c": {}})
	assert.Equal(t, []string{"a", "b"}, m.names())
	assert.Equal(t, "^c", m.patterns[0].String())
	assert.Len(t, m.patterns, 2)
	assert.Nil(t, newMatcher(Topics{"a": {}}).whitelist())
}

func TestPatternsThatMatchNothing(t *testing.T) {
	m := newMatcher(Topics{"orders": {}, "^orders": {}, "^refunds-": {}, "^.*consumer": {}, "^z": {}})
	assert.Equal(t, []string{"^.*consumer", "^orders", "^z"}, m.unmatched([]string{
		"orders", // a name beats a pattern
		"refunds-eu",
		"__consumer_offsets", // internal: no pattern matches it
		"my-z",
	}))
	assert.Empty(t, m.unmatched([]string{"orders-eu", "refunds-eu", "a-consumer", "z"}))
	assert.Equal(t, []string{"^refunds-", "^z"}, m.unmatched([]string{"orders-consumer"}), "one topic of two patterns is another mistake")
	assert.Empty(t, newMatcher(Topics{"orders": {}}).unmatched(nil))
}

// The engine decides by the whitelist which topics it joins with, and match which
// handler gets them: if they differed, messages would arrive that have none.
func TestWhitelistMatchesWhatPatternsMatch(t *testing.T) {
	// The first leaves a quotation open, the second sets a flag.
	m := newMatcher(Topics{`^\Qa.b`: {}, `^(?i)orders`: {}, "^x|y$": {}})
	list := m.whitelist()
	for topic, want := range map[string]bool{
		"a.b": true, "a.b-1": true, "axb": false, "A.B": false,
		"ORDERS": true, "x1": true, "1y": true, "1x": false, "Y": false,
	} {
		_, name, err := m.match(topic)
		require.NoError(t, err)
		assert.Equal(t, want, name != "", "match %q", topic)
		assert.Equal(t, want, list.MatchString(topic), "whitelist %q", topic)
	}
}

func TestOverlaps(t *testing.T) {
	tests := []struct {
		name  string
		a, b  string
		named []string
		want  string // a witness; empty: they do not overlap
	}{
		{name: "prefixes apart", a: "^orders", b: "^refunds"},
		{name: "one extends the other", a: "^orders", b: "^orders-eu", want: "orders-eu"},
		{name: "apart with an end", a: "^orders$", b: "^orders-eu$"},
		{name: "prefix and suffix", a: "^a.*", b: "^.*b$", want: "ab"},
		{name: "alternation branch", a: "^(x|orders|y)$", b: "^(p|q|orders)$", want: "orders"},
		{name: "repetitions meet", a: "^(aa)+$", b: "^(aaa)+$", want: "aaaaaa"},
		{name: "lengths apart", a: "^.{3}$", b: "^.{4}$"},
		{name: "upper and lower case apart", a: "^orders", b: "^ORDERS"},
		{name: "case folded", a: "^(?i)orders$", b: "^ORDERS$", want: "ORDERS"},
		{name: "second branch not anchored", a: "^a|b", b: "^cb$", want: "cb"},
		{name: "word boundary", a: `^a\b`, b: "^a.b$", want: "a-b"},
		{name: "only illegal names in common", a: "^a[/b]$", b: "^a[/c]$"},
		{name: "only internal names in common", a: "^_+a$", b: "^__"},
		{name: "only a named topic in common", a: "^a.?$", b: "^.?b$", named: []string{"ab"}},
		{name: "a named topic and others", a: "^a", b: "^ab", named: []string{"ab"}, want: "aba"},
		{name: "a named topic and one like it", a: "^a[bc]$", b: "^a[bc]$|^zz", named: []string{"ab"}, want: "ac"},
		{name: "internal names and one like them", a: "^[_A]_b$", b: "^[_A]_[bc]$", want: "A_b"},
		{name: "internal names and others alike", a: "^[_A]{2}b$", b: "^[_A]{2}[bc]$", want: "_Ab"},
		{name: "word boundary after either", a: `^[a-]\bb$`, b: "^[a-]b$", want: "-b"},
		{name: "only dots in common", a: `^[.x]{1,2}$`, b: `^[.y]{1,2}$`},
		{name: "only too long names in common", a: "^[ab]{250,}$", b: "^[ac]{250,}$"},
		{name: "everything", a: "^", b: "^x$", want: "x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			topics := Topics{tt.a: {}, tt.b: {}}
			for _, name := range tt.named {
				topics[name] = Topic{}
			}
			var got string
			for _, o := range overlaps(topics) {
				got = o.witness
				assert.ElementsMatch(t, []string{tt.a, tt.b}, []string{o.a, o.b})
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

// An automaton of 2³⁰ states must not keep New from returning.
func TestWitnessGivesUp(t *testing.T) {
	_, found, proven := witness("^(a|b)*a(a|b){30}c$", "^(a|b)*b(a|b){30}c.*d$", nil)
	assert.False(t, found)
	assert.False(t, proven)
}

// Random pairs of small patterns against all short names: a reported witness
// matches both patterns, and where a short name matches both, one is reported and
// is no longer than that.
func TestOverlapsAgainstEnumeration(t *testing.T) {
	var short []string
	for level := []string{""}; len(level[0]) < 4; {
		var next []string
		for _, s := range level {
			for _, c := range "ab-_" {
				next = append(next, s+string(c))
			}
		}
		level = next
		short = append(short, level...)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	overlapping := 0
	for range 400 {
		a, b := "^"+randomPattern(rnd, 3), "^"+randomPattern(rnd, 3)
		if a == b {
			continue
		}
		want := shortestCommon(a, b, short)
		text, found, proven := witness(a, b, nil)
		require.True(t, found || proven, "%s and %s: undecided", a, b)
		if want != "" {
			require.True(t, found, "%s and %s both match %q", a, b, want)
			require.Len(t, text, len(want), "%s and %s: %q and %q", a, b, text, want)
			overlapping++
		}
		if found {
			requireWitness(t, a, b, text)
		}
	}
	assert.Greater(t, overlapping, 40, "the patterns hardly ever overlap: this checks nothing")
	assert.Less(t, overlapping, 360, "the patterns nearly always overlap: this checks nothing")
}

func shortestCommon(a, b string, names []string) string {
	first, second := regexp.MustCompile(a), regexp.MustCompile(b)
	for _, name := range names {
		if first.MatchString(name) && second.MatchString(name) && !strings.HasPrefix(name, "__") {
			return name
		}
	}
	return ""
}

func requireWitness(t *testing.T, a, b, text string) {
	t.Helper()
	require.Regexp(t, regexp.MustCompile(a), text)
	require.Regexp(t, regexp.MustCompile(b), text)
	require.NoError(t, checkTopicName(text))
	require.NotRegexp(t, internalTopics, text)
}

func randomPattern(rnd *rand.Rand, depth int) string {
	if depth == 0 {
		return []string{"a", "b", "-", "_", "[ab]", "[^a]", ".", `\b`, "$", ""}[rnd.IntN(10)]
	}
	x, y := randomPattern(rnd, depth-1), randomPattern(rnd, depth-1)
	switch rnd.IntN(8) {
	case 0:
		return "(" + x + "|" + y + ")"
	case 1:
		return "(" + x + ")*" + y
	case 2:
		return "(" + x + ")+" + y
	case 3:
		return "(" + x + ")?" + y + "$"
	case 4:
		return x + y + "$"
	case 5:
		return x + "|" + y
	default:
		return x + y
	}
}

func FuzzOverlapWitness(f *testing.F) {
	f.Add("^orders", "^orders-eu", "orders-eu-1")
	f.Add("^a.*", "^.*b$", "ab")
	f.Add("^_+x", `^.\bx|(?i)Y`, "_x")
	f.Fuzz(func(t *testing.T, a, b, name string) {
		for _, pattern := range []string{a, b} {
			if _, err := regexp.Compile(pattern); err != nil || !isPattern(pattern) {
				return
			}
		}
		text, found, proven := witness(a, b, nil)
		if found {
			requireWitness(t, a, b, text)
		}
		if proven && !found && checkTopicName(name) == nil && !isPattern(name) && !internalTopics.MatchString(name) {
			both := regexp.MustCompile(a).MatchString(name) && regexp.MustCompile(b).MatchString(name)
			require.False(t, both, "%q matches %s and %s", name, a, b)
		}
	})
}

func TestNearest(t *testing.T) {
	existing := []string{"refunds", "orders", "order", "payments.v2", "payments.v1", "t1", "customer-addresses"}
	for name, want := range map[string]string{
		"oders":                  "orders",
		"Orders":                 "orders",
		"refnuds":                "refunds",
		"payments-v3":            "payments.v1", // v2 is as near: the first in the alphabet
		"invoices":               "",
		"customer-addr":          "", // five edits, more than a third
		"customer-addresses-eu1": "", // four edits
		"t2":                     "", // too short to guess
		"":                       "",
	} {
		got, ok := nearest(name, existing)
		assert.Equal(t, want, got, name)
		assert.Equal(t, want != "", ok, name)
	}
}

func TestEditDistance(t *testing.T) {
	words := []string{"", "a", "ab", "kitten", "sitting", "orders", "oders"}
	for _, a := range words {
		assert.Zero(t, editDistance(a, a))
		for _, b := range words {
			assert.Equal(t, editDistance(a, b), editDistance(b, a), "%q %q", a, b)
		}
	}
	assert.Equal(t, 3, editDistance("kitten", "sitting"))
	assert.Equal(t, 6, editDistance("", "orders"))
	assert.Equal(t, 1, editDistance("oders", "orders"))
}
