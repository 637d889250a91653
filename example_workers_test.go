package kgroup_test

import (
	"context"
	"log"

	"github.com/kgroup-go/kgroup"
)

// Payments of one account are handled one after the other, those of 64 accounts at once, in
// each partition. The records' key is the payment's id, so that the account has to be named.
func ExampleTopic_workers() {
	account := func(msg kgroup.Message) []byte {
		value, _ := msg.Header("account")
		return value
	}
	_, err := kgroup.New(kgroup.Config{
		Brokers: []string{"localhost:9092"},
		Group:   "billing",
		Mode:    kgroup.Partitions, // or a partition that is behind keeps the others waiting
		Topics: kgroup.Topics{
			"payments": {
				Handler: kgroup.HandlerFunc(func(context.Context, kgroup.Message) error {
					return nil // ask the bank, which takes its time
				}),
				Workers: 64,
				Key:     account,
			},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
}
