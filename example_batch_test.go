package kgroup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kgroup-go/kgroup"
)

type row struct{ ID int }

// A batch is inserted at once. The database refuses some rows: they are named, handled
// alone from then on, and become dead letters if that does not help.
func ExampleTypedBatch() {
	decode := func(_ context.Context, msg kgroup.Message) (row, error) {
		var r row
		if err := json.Unmarshal(msg.Value, &r); err != nil {
			return r, kgroup.Permanent(err)
		}
		return r, nil
	}
	insert := func(_ context.Context, rows []row, _ []kgroup.Message) error {
		failed := map[int]error{}
		for i, r := range rows {
			if r.ID < 0 {
				failed[i] = kgroup.Permanent(errors.New("constraint violated"))
			}
		}
		if len(failed) > 0 {
			return &kgroup.BatchError{Failed: failed}
		}
		return nil
	}
	topic := kgroup.Topic{
		Batch:      kgroup.Batch{Handler: kgroup.TypedBatch(decode, insert), Size: 1000},
		DeadLetter: "rows.dlq",
	}

	err := topic.Batch.Handler.HandleBatch(context.Background(), []kgroup.Message{
		{Value: []byte(`{"ID": 1}`)}, {Value: []byte(`{"ID": -2}`)}, {Value: []byte(`{"ID": 3}`)},
	})
	fmt.Println(err)
	// Output: 1 of the batch failed, the first of them 1: constraint violated
}
