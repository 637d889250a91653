package kgroup

// Which entry of Topics a Kafka topic belongs to. config.go asks whether that can
// be answered at all: what may be called how, and which patterns collide. When the
// consumer runs, each topic it is given is matched here to find its handler.

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

const (
	internalPrefix = "__"
	maxTopicName   = 249
	topicAlphabet  = "abcdefghijklmnopqrstuvwxyz0123456789-._ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

var internalTopics = regexp.MustCompile("^" + internalPrefix)

func isPattern(name string) bool { return strings.HasPrefix(name, "^") }

// checkTopicName checks a key of Topics: a topic's name by Kafka's rules
// (org.apache.kafka.common.internals.Topic), or a pattern.
func checkTopicName(name string) error {
	if isPattern(name) {
		return checkPattern(name)
	}
	switch {
	case name == "":
		return errors.New("is empty; give the topic's name")
	case name == "." || name == "..":
		return errors.New(`Kafka allows no topic named "." or ".."`)
	case len(name) > maxTopicName:
		return fmt.Errorf("has %d characters; Kafka allows %d", len(name), maxTopicName)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return !strings.ContainsRune(topicAlphabet, r) }); i >= 0 {
		hint := ""
		if strings.ContainsAny(name, `*^$()[]+?|\`) {
			hint = ", and a regular expression begins with '^'"
		}
		return fmt.Errorf("has %q in it; Kafka allows letters, digits, '.', '_' and '-'%s", []rune(name[i:])[0], hint)
	}
	return nil
}

func checkPattern(pattern string) error {
	if _, err := regexp.Compile(pattern); err != nil {
		return fmt.Errorf("is not a regular expression: %w", err)
	}
	if _, found, proven := witness(pattern, "^", nil); !found && proven {
		return errors.New(`can match no topic: names have up to 249 letters, digits, '.', '_' and '-', and internal topics (beginning with "__") must be named`)
	}
	return nil
}

// A matcher finds the entry of Topics for a topic.
type matcher struct {
	topics   Topics
	patterns []*regexp.Regexp // sorted
	letters  map[string]bool  // every DeadLetter: no pattern matches it
}

// newMatcher wants topics whose names have been checked.
func newMatcher(topics Topics) *matcher {
	m := &matcher{topics: topics, letters: deadLetters(topics)}
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		if isPattern(name) {
			m.patterns = append(m.patterns, regexp.MustCompile(name))
		}
	}
	return m
}

// match returns the entry that topic belongs to, and its name in Topics; an empty
// name says that there is none.
func (m *matcher) match(topic string) (entry Topic, name string, err error) {
	if entry, ok := m.topics[topic]; ok && !isPattern(topic) {
		return entry, topic, nil
	}
	if m.unmatchable(topic) {
		return Topic{}, "", nil
	}
	for _, re := range m.patterns {
		switch {
		case !re.MatchString(topic):
		case name != "":
			return Topic{}, "", fmt.Errorf("topic %q is matched by both %s and %s; change one of the patterns, or name the topic itself", topic, topicField(name), topicField(re.String()))
		default:
			name = re.String()
		}
	}
	return m.topics[name], name, nil
}

// unmatched returns the patterns, sorted, that match none of the existing topics but
// for those that are named themselves: they wait for one, or are misspelt.
func (m *matcher) unmatched(existing []string) []string {
	left := slices.DeleteFunc(slices.Clone(existing), func(topic string) bool {
		_, named := m.topics[topic]
		return named || m.unmatchable(topic)
	})
	var waiting []string
	for _, re := range m.patterns {
		if !slices.ContainsFunc(left, re.MatchString) {
			waiting = append(waiting, re.String())
		}
	}
	return waiting
}

// names returns the topics that are named themselves, sorted.
func (m *matcher) names() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(m.topics)) {
		if !isPattern(name) {
			names = append(names, name)
		}
	}
	return names
}

// whitelist returns one regular expression that matches what any pattern matches,
// or nil if there is no pattern.
func (m *matcher) whitelist() *regexp.Regexp {
	if len(m.patterns) == 0 {
		return nil
	}
	parts := make([]string, len(m.patterns))
	for i, re := range m.patterns {
		parts[i] = "(?:" + parse(re.String()).String() + ")" // in full: a \Q left open would swallow the rest
	}
	return regexp.MustCompile(strings.Join(parts, "|"))
}

// unmatchable reports whether no pattern may match a topic.
func (m *matcher) unmatchable(topic string) bool {
	return internalTopics.MatchString(topic) || m.letters[topic]
}

// blacklist is [matcher.unmatchable] as a regular expression.
func (m *matcher) blacklist() *regexp.Regexp {
	expr := internalTopics.String()
	for _, name := range slices.Sorted(maps.Keys(m.letters)) {
		expr += "|^" + regexp.QuoteMeta(name) + "$"
	}
	return regexp.MustCompile(expr)
}

// deadLetters are the topics that get dead letters.
func deadLetters(topics Topics) map[string]bool {
	letters := map[string]bool{}
	for _, t := range topics {
		if t.DeadLetter != "" {
			letters[t.DeadLetter] = true
		}
	}
	return letters
}

// nearest returns the name in existing that is most like name, for "did you mean":
// at most a third of name's characters, and at most three, may differ. Of equals
// it returns the first in the alphabet.
func nearest(name string, existing []string) (string, bool) {
	best, least := "", min(3, len(name)/3)+1
	for _, other := range slices.Sorted(slices.Values(existing)) {
		if d := editDistance(name, other); d < least {
			best, least = other, d
		}
	}
	return best, best != ""
}

// editDistance counts the characters to insert, delete or replace (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1) // distances of a's prefix so far to each prefix of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

type overlap struct{ a, b, witness string }

// overlaps returns the pairs of patterns that match the same topic, with the
// shortest such topic. It never returns a pair wrongly; one that it cannot decide
// within its limits shows up in match when such a topic appears.
func overlaps(topics Topics) []overlap {
	var patterns []string
	var compiled []*regexp.Regexp
	named := deadLetters(topics)
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		if re, err := regexp.Compile(name); !isPattern(name) {
			named[name] = true
		} else if err == nil {
			patterns, compiled = append(patterns, name), append(compiled, re)
		}
	}
	var found []overlap
	for i, a := range patterns {
		for j := i + 1; j < len(patterns); j++ {
			var taken []string // matched by both, but neither pattern's
			for name := range named {
				if compiled[i].MatchString(name) && compiled[j].MatchString(name) {
					taken = append(taken, name)
				}
			}
			if text, ok, _ := witness(a, patterns[j], taken); ok {
				found = append(found, overlap{a, patterns[j], text})
			}
		}
	}
	return found
}

// witness looks for a shortest legal topic name that both patterns match, is not
// internal and not taken. If it finds none, proven says that there is none.
//
// It runs the two patterns' automata side by side over all names at once, shortest
// first (a breadth-first search of the product of their subset constructions), so
// that .* in either is no guesswork. Of characters that neither pattern can tell
// apart it tries one.
func witness(a, b string, taken []string) (text string, found, proven bool) {
	first, second := newAutomaton(a), newAutomaton(b)
	taken = append([]string{".", ".."}, taken...)
	alphabet := distinct(first.prog, second.prog, taken)

	type node struct {
		a, b threads
		text string
	}
	// What can follow depends on the threads, on the last character (for \b) and,
	// as long as it may still become a name to avoid, on the text.
	key := func(n node) string {
		avoid := ""
		if strings.HasPrefix(internalPrefix, n.text) || slices.ContainsFunc(taken, func(t string) bool { return strings.HasPrefix(t, n.text) }) {
			avoid = n.text
		}
		word := n.text != "" && syntax.IsWordChar(rune(n.text[len(n.text)-1]))
		return strings.Join([]string{string(n.a), string(n.b), strconv.FormatBool(word), avoid}, "/")
	}

	seen := map[string]bool{}
	queue := []node{{first.start(), second.start(), ""}}
	// Instructions looked at: 2²⁰ take some ten milliseconds, and real patterns
	// need a thousandth of it.
	budget := 1 << 20
	for ; len(queue) > 0; queue = queue[1:] {
		n := queue[0]
		prev := rune(-1)
		if n.text != "" {
			prev = rune(n.text[len(n.text)-1])
			_, endA := first.step(n.a, prev, -1)
			_, endB := second.step(n.b, prev, -1)
			if endA && endB && !slices.Contains(taken, n.text) {
				return n.text, true, true
			}
		}
		if len(n.text) == maxTopicName {
			continue
		}
		for _, next := range alphabet {
			text := n.text + string(next)
			if strings.HasPrefix(text, internalPrefix) {
				continue
			}
			nextA, okA := first.step(n.a, prev, next)
			nextB, okB := second.step(n.b, prev, next)
			budget -= len(n.a) + len(n.b)
			if budget < 0 {
				return "", false, false
			}
			successor := node{nextA, nextB, text}
			if k := key(successor); okA && okB && !seen[k] {
				seen[k] = true
				queue = append(queue, successor)
			}
		}
	}
	return "", false, true
}

// An automaton is a compiled pattern, simulated like package regexp does, but for
// sets of texts instead of one.
type automaton struct {
	prog     *syntax.Prog
	anchored bool // matches begin at the beginning only
}

// threads has a 1 for each instruction that may be next. It is nil when the
// pattern has matched: what follows does not matter then.
type threads []byte

func newAutomaton(pattern string) automaton {
	prog, err := syntax.Compile(parse(pattern).Simplify())
	if err != nil {
		panic(err)
	}
	return automaton{prog, prog.StartCond()&syntax.EmptyBeginText != 0}
}

// parse reads a pattern that regexp.Compile has taken, in the same way.
func parse(pattern string) *syntax.Regexp {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		panic(err)
	}
	return parsed
}

func (m automaton) start() threads {
	t := make(threads, len(m.prog.Inst))
	t[m.prog.Start] = 1
	return t
}

// step takes the threads over the character next, which follows prev; -1 stands
// for the text's beginning and end. It reports whether the pattern has matched or
// still can; at the end, whether it has matched.
func (m automaton) step(at threads, prev, next rune) (after threads, ok bool) {
	if at == nil {
		return nil, true
	}
	after = make(threads, len(at))
	if !m.anchored && next >= 0 {
		after[m.prog.Start], ok = 1, true
	}
	here := syntax.EmptyOpContext(prev, next)
	visited := make(threads, len(at))
	var stack []uint32
	push := func(pc uint32) {
		if visited[pc] == 0 {
			visited[pc] = 1
			stack = append(stack, pc)
		}
	}
	for pc, set := range at {
		if set == 1 {
			push(uint32(pc))
		}
	}
	for len(stack) > 0 {
		inst := &m.prog.Inst[stack[len(stack)-1]]
		stack = stack[:len(stack)-1]
		switch inst.Op {
		case syntax.InstMatch:
			return nil, true
		case syntax.InstAlt, syntax.InstAltMatch:
			push(inst.Out)
			push(inst.Arg)
		case syntax.InstCapture, syntax.InstNop:
			push(inst.Out)
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(inst.Arg)&^here == 0 {
				push(inst.Out)
			}
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if next >= 0 && inst.MatchRune(next) {
				after[inst.Out], ok = 1, true
			}
		case syntax.InstFail:
		}
	}
	return after, ok
}

// distinct returns the characters of topic names without those that behave like
// an earlier one in both programs and in the names to avoid.
func distinct(a, b *syntax.Prog, avoid []string) []rune {
	var kept []rune
	insts := slices.Concat(a.Inst, b.Inst)
	seen := map[string]bool{}
	for _, r := range topicAlphabet {
		behaviour := strconv.AppendBool(nil, syntax.IsWordChar(r))
		for i, inst := range insts {
			if inst.MatchRune(r) { // never, if the instruction takes no character
				behaviour = strconv.AppendInt(append(behaviour, ','), int64(i), 10)
			}
		}
		if strings.ContainsRune(internalPrefix, r) || slices.ContainsFunc(avoid, func(s string) bool { return strings.ContainsRune(s, r) }) {
			behaviour = []byte(string(r))
		}
		if !seen[string(behaviour)] {
			seen[string(behaviour)] = true
			kept = append(kept, r)
		}
	}
	return kept
}
