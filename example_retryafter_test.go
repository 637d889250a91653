package kgroup_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"

	"github.com/kgroup-go/kgroup"
)

// A service that is asked too often says when to come again. Its partition waits so long,
// and no longer than the handler allows: the messages behind wait, too.
func ExampleRetryAfter() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	handler := kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, bytes.NewReader(msg.Value))
		if err != nil {
			return err
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode < 300 {
			return nil
		}
		err = fmt.Errorf("charge: %s", resp.Status)
		if wait, ok := retryAfter(resp.Header, time.Now()); ok {
			fmt.Println("come again in", wait)
			return kgroup.RetryAfter(err, min(wait, 5*time.Minute))
		}
		return err // the usual backoff
	})

	fmt.Println(handler.Handle(context.Background(), kgroup.Message{Value: []byte("A-7")}))
	// Output:
	// come again in 30s
	// charge: 429 Too Many Requests
}

// retryAfter reads the header Retry-After: seconds, or a date.
func retryAfter(header http.Header, now time.Time) (time.Duration, bool) {
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	date, err := http.ParseTime(value)
	return date.Sub(now), err == nil
}
