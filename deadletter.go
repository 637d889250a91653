package kgroup

// Dead letters: what becomes of a message that is not handled any more. It is settled
// when the brokers have the letter; until then its lane waits. Writing it is the
// engine's business.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// condemn finishes a message that is not handled any more, because of h.at.verdict. It
// reports false if the lane is at its end; then the next owner comes to the same end.
func (h *hand) condemn(msg Message) bool {
	msg.Attempt = h.at.attempt
	why := handlerError(msg, h.at.verdict)
	if h.topic.DeadLetter == "" {
		h.standStill()
		h.block(why, true, 0)
		h.rest()
		<-h.sealed
		return false
	}
	letter, text := h.letter(msg, true), true
	for try := 1; ; try++ {
		err := h.publish(h.ctx, letter)
		if errors.Is(err, engine.ErrTooLarge) && text {
			letter, text = h.letter(msg, false), false
			err = h.publish(h.ctx, letter)
		}
		if err == nil {
			h.buried(why)
			return true
		}
		if h.ctx.Err() != nil {
			return false
		}
		h.standStill()
		o := retry
		if h.topic.Retry.exhausted(try) || errors.Is(err, engine.ErrTooLarge) {
			o = hold
		}
		wait := h.topic.Retry.backoff(o, try, nil)
		h.block(handlerError(msg, fmt.Errorf("write to the dead-letter topic %q: %w (it goes there because of: %w)", h.topic.DeadLetter, err, h.at.verdict)), o == hold, wait)
		if !h.sleep(wait) {
			return false
		}
	}
}

// standStill takes a lane that does not go on out of the quarantine, which others must not
// wait for. With a crew others of the lane go on, and are suspects still.
func (h *hand) standStill() {
	if h.crew == nil {
		h.quarantine.acquit(h.lane)
	}
}

// buried settles a message whose letter the brokers have.
func (h *hand) buried(why *HandlerError) {
	h.settle(why.Offset, true)
	h.at = progress{}
	h.log.Warn("message is a dead letter now", "offset", why.Offset, "attempts", why.Attempts, "dead_letter", h.topic.DeadLetter, "error", why.Err)
	h.unblock()
	if h.hooks.DeadLetter != nil {
		h.tell(func() { h.hooks.DeadLetter(why) })
	}
}

// letter is what is written for a message. text says whether to add the words of the
// error: a message may be as large as the topic takes.
func (h *hand) letter(msg Message, text bool) engine.Letter {
	o := provenance{
		msg: msg, err: h.at.verdict, group: h.group, handler: h.topic.handlerType(), at: time.Now(),
	}
	var all, added []engine.Header
	switch h.topic.DeadLetterHeaders {
	case SpringHeaders:
		all = o.spring()
	case ConnectHeaders:
		all = o.connect()
	case KgroupHeaders:
		all = o.kgroup()
	}
	for _, h := range all {
		if text || !slices.Contains(words, h.Key) {
			added = append(added, h)
		}
	}
	var kept []engine.Header // a message may have been a dead letter before
	for _, h := range msg.Headers {
		if !slices.ContainsFunc(all, func(a engine.Header) bool { return a.Key == h.Key }) {
			kept = append(kept, engine.Header{Key: h.Key, Value: h.Value})
		}
	}
	return engine.Letter{
		Partition: engine.Partition{Topic: h.topic.DeadLetter, Number: msg.Partition},
		Key:       msg.Key,
		Value:     msg.Value,
		Headers:   append(kept, added...),
		Timestamp: msg.Timestamp,
	}
}

// A provenance is what the headers of a letter say.
type provenance struct {
	msg     Message
	err     error
	group   string
	handler string
	at      time.Time
}

// words are the headers that a letter can do without.
var words = []string{
	"kgroup-error", "kafka_dlt-exception-message", "kafka_dlt-exception-stacktrace",
	"__connect.errors.exception.message", "__connect.errors.exception.stacktrace",
}

// Millisecond is Kafka's precision.
const headerTime = "2006-01-02T15:04:05.000Z07:00"

func (o provenance) kgroup() []engine.Header {
	return []engine.Header{
		o.header("kgroup-origin-topic", o.msg.Topic),
		o.header("kgroup-origin-partition", strconv.Itoa(int(o.msg.Partition))),
		o.header("kgroup-origin-offset", strconv.FormatInt(o.msg.Offset, 10)),
		o.header("kgroup-origin-timestamp", o.msg.Timestamp.UTC().Format(headerTime)),
		o.header("kgroup-group", o.group),
		o.header("kgroup-attempts", strconv.Itoa(o.msg.Attempt)),
		o.header("kgroup-failed-at", o.at.UTC().Format(headerTime)),
		o.header("kgroup-error", o.err.Error()),
	}
}

// spring writes what Spring Kafka's DeadLetterPublishingRecoverer does. The engine does
// not tell a timestamp's type, so it is said to be the usual one.
func (o provenance) spring() []engine.Header {
	const prefix = "kafka_dlt-"
	return []engine.Header{
		o.header(prefix+"original-topic", o.msg.Topic),
		{Key: prefix + "original-partition", Value: binary.BigEndian.AppendUint32(nil, uint32(o.msg.Partition))},
		{Key: prefix + "original-offset", Value: binary.BigEndian.AppendUint64(nil, uint64(o.msg.Offset))},
		{Key: prefix + "original-timestamp", Value: binary.BigEndian.AppendUint64(nil, uint64(o.msg.Timestamp.UnixMilli()))},
		o.header(prefix+"original-timestamp-type", "CreateTime"),
		o.header(prefix+"original-consumer-group", o.group),
		o.header(prefix+"exception-fqcn", o.class()),
		o.header(prefix+"exception-message", o.err.Error()),
		o.header(prefix+"exception-stacktrace", o.stack()),
	}
}

// connect writes what Kafka Connect does for a sink whose put has failed.
func (o provenance) connect() []engine.Header {
	const prefix = "__connect.errors."
	return []engine.Header{
		o.header(prefix+"topic", o.msg.Topic),
		o.header(prefix+"partition", strconv.Itoa(int(o.msg.Partition))),
		o.header(prefix+"offset", strconv.FormatInt(o.msg.Offset, 10)),
		o.header(prefix+"connector.name", o.group),
		o.header(prefix+"task.id", "0"),
		o.header(prefix+"stage", "TASK_PUT"),
		o.header(prefix+"class.name", o.handler),
		o.header(prefix+"exception.class.name", o.class()),
		o.header(prefix+"exception.message", o.err.Error()),
		o.header(prefix+"exception.stacktrace", o.stack()),
	}
}

// maxErrorText is how many bytes of an error, or of a stack, a letter has.
const maxErrorText = 1024

func (o provenance) header(key, text string) engine.Header {
	if len(text) > maxErrorText {
		end := maxErrorText
		for end > 0 && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	return engine.Header{Key: key, Value: []byte(text)}
}

// class is the type of the handler's error.
func (o provenance) class() string {
	err := o.err
	for {
		switch wrapped := err.(type) { //nolint:errorlint // one layer after the other
		case *permanentError:
			err = wrapped.err
		case *retryAfterError:
			err = wrapped.err
		default:
			return fmt.Sprintf("%T", err)
		}
	}
}

// stack is that of a panic, or what there is instead.
func (o provenance) stack() string {
	if p := (*PanicError)(nil); errors.As(o.err, &p) {
		return string(p.Stack)
	}
	return o.err.Error()
}
