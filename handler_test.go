package kgroup

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHeader(t *testing.T) {
	msg := Message{Headers: []Header{{"a", []byte("1")}, {"b", nil}, {"a", []byte("2")}}}
	for key, want := range map[string]struct {
		value []byte
		ok    bool
	}{
		"a": {[]byte("2"), true}, // the last one counts
		"b": {nil, true},
		"A": {nil, false},
		"":  {nil, false},
	} {
		value, ok := msg.Header(key)
		assert.Equal(t, want.value, value, key)
		assert.Equal(t, want.ok, ok, key)
	}
}

func TestChain(t *testing.T) {
	var trace []string
	named := func(name string) Middleware {
		return func(next Handler) Handler {
			return HandlerFunc(func(ctx context.Context, msg Message) error {
				trace = append(trace, name+" in")
				err := next.Handle(ctx, msg)
				trace = append(trace, name+" out: "+err.Error())
				return errors.New(name)
			})
		}
	}
	h := HandlerFunc(func(context.Context, Message) error {
		trace = append(trace, "handler")
		return errHandler
	})
	err := Chain(h, named("first"), named("second")).Handle(t.Context(), Message{})
	require.EqualError(t, err, "first")
	assert.Equal(t, []string{"first in", "second in", "handler", "second out: bank is closed", "first out: second"}, trace)
	require.Equal(t, errHandler, Chain(h).Handle(t.Context(), Message{}))
}

func TestTyped(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "tenant")
	msg := Message{Topic: "orders", Value: []byte("5")}
	decode := func(ctx context.Context, msg Message) (int, error) {
		assert.Equal(t, "tenant", ctx.Value(key{}))
		if string(msg.Value) != "5" {
			return 0, errTransient
		}
		return 5, nil
	}
	calls := 0
	h := Typed(decode, func(ctx context.Context, n int, got Message) error {
		calls++
		assert.Equal(t, "tenant", ctx.Value(key{}))
		assert.Equal(t, 5, n)
		assert.Equal(t, msg, got)
		return errHandler
	})
	require.Equal(t, errHandler, h.Handle(ctx, msg))
	err := h.Handle(ctx, Message{Value: []byte("6")})
	require.Equal(t, errTransient, err, "decode decides itself what is permanent")
	assert.Equal(t, 1, calls)
}

type order struct {
	ID     int
	Card   int32
	Placed time.Time
	Items  map[int]string
}

func TestJSON(t *testing.T) {
	var got order
	calls := 0
	h := JSON(func(_ context.Context, o order, msg Message) error {
		got = o
		calls++
		return nil
	})
	require.NoError(t, h.Handle(t.Context(), Message{Value: []byte(` {"ID": 7} ` + "\n")}))
	assert.Equal(t, order{ID: 7}, got)
	require.NoError(t, h.Handle(t.Context(), Message{Value: nil, Key: []byte("k")}), "a tombstone")
	assert.Equal(t, order{}, got)
	assert.Equal(t, 2, calls)
	require.Equal(t, errHandler, JSON(func(context.Context, order, Message) error { return errHandler }).Handle(t.Context(), Message{Value: []byte("{}")}))
}

func TestJSONThatDoesNotDecode(t *testing.T) {
	for name, value := range map[string]string{
		"empty":              "",
		"white space":        " ",
		"not JSON":           "4111111111111111x",
		"cut off":            `{"ID": 4111111111111111`,
		"another type":       `{"ID": "4111111111111111"}`,
		"number too large":   `{"Card": 4111111111111111}`,
		"a time that is not": `{"Placed": "4111111111111111"}`,
		"a key that is not":  `{"Items": {"x4111111111111111": "x"}}`,
		"a key too large":    `{"Items": {"4111111111111111411111": "x"}}`,
		"two values":         `{"ID": 1} {"ID": 4111111111111111}`,
		"rubbish after it":   `{"ID": 1} 4111111111111111`,
		"a bracket after it": `{"ID": 1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			h := JSON(func(context.Context, order, Message) error {
				t.Error("it was handled")
				return nil
			})
			err := h.Handle(t.Context(), Message{Topic: "orders", Partition: 3, Offset: 42, Value: []byte(value)})
			require.Error(t, err)
			assert.True(t, isPermanent(err))
			assert.Contains(t, err.Error(), "orders/3 at 42")
			assert.NotContains(t, err.Error(), "4111111111111111", "never its content")
		})
	}
}

func TestPanic(t *testing.T) {
	attempt := func(v any) error {
		msg := Message{}
		return handle(t.Context(), HandlerFunc(func(context.Context, Message) error { panic(v) }), &msg)
	}
	var p *PanicError
	require.ErrorAs(t, attempt("no such account"), &p)
	assert.Equal(t, "no such account", p.Value)
	assert.Contains(t, string(p.Stack), "handler_test.go")
	assert.Equal(t, "handler panicked: no such account", p.Error())
	require.NoError(t, errors.Unwrap(p))

	require.ErrorIs(t, attempt(errHandler), errHandler)
	assert.True(t, isPermanent(attempt(Permanent(errHandler))))
	require.ErrorAs(t, attempt(nil), &p, "panic(nil) too")
}

func TestPermanent(t *testing.T) {
	require.NoError(t, Permanent(nil))
	err := Permanent(errHandler)
	require.ErrorIs(t, err, errHandler)
	assert.Equal(t, errHandler.Error(), err.Error())
	assert.True(t, isPermanent(err))
	assert.False(t, isPermanent(errHandler))
}

func TestErrorTexts(t *testing.T) {
	failed := &HandlerError{Topic: "orders", Partition: 3, Offset: 42, Attempts: 7, Err: errHandler}
	assert.Equal(t, "kgroup: handle orders/3 at 42: attempt 7: bank is closed", failed.Error())
	require.ErrorIs(t, failed, errHandler)
	for _, err := range []error{ErrAlreadyRun, ErrNotRunning, ErrPartitionLost, ErrShutdownTimeout, &ConfigError{Field: "Group", Err: errHandler}} {
		assert.True(t, strings.HasPrefix(err.Error(), "kgroup: "), err)
	}
	require.ErrorIs(t, &ConfigError{Err: errHandler}, errHandler)
}

func TestTypedWithoutAFunctionIsANilHandler(t *testing.T) {
	for name, h := range map[string]Handler{
		"JSON":         JSON[int](nil),
		"Typed":        Typed[int](decodeJSON[int], nil),
		"Typed decode": Typed(nil, func(context.Context, int, Message) error { return nil }),
	} {
		t.Run(name, func(t *testing.T) {
			err := Config{Brokers: []string{"localhost:9092"}, Group: "billing", Topics: Topics{"orders": {Handler: h}}}.Validate()
			var wrong *ConfigError
			require.ErrorAs(t, err, &wrong)
			assert.Equal(t, `Topics["orders"].Handler`, wrong.Field)
		})
	}
}
