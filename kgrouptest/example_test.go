package kgrouptest_test

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

// A program with a broker of its own. A test writes kgrouptest.Start(t, …) instead,
// and has nothing to close.
func Example() {
	broker, err := kgrouptest.New(kgrouptest.Config{
		Topics: []kgrouptest.Topic{{Name: "orders", Partitions: 4}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer broker.Close()

	err = broker.Produce("orders",
		kgrouptest.Record{Key: []byte("ann"), Value: []byte("tea")},
		kgrouptest.Record{Value: []byte("milk")}.On(3),
	)
	if err != nil {
		fmt.Println(err)
		return
	}

	// The consumer under test: any Kafka client.
	consumer, err := kgo.NewClient(
		kgo.SeedBrokers(broker.Addrs()...),
		kgo.ConsumerGroup("billing"),
		kgo.ConsumeTopics("orders"),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer consumer.Close()
	ctx := context.Background()
	for seen := 0; seen < 2; {
		seen += consumer.PollFetches(ctx).NumRecords()
	}
	if err := consumer.CommitUncommittedOffsets(ctx); err != nil {
		fmt.Println(err)
		return
	}

	fmt.Println(broker.WaitCommitted(ctx, "billing", "orders"))
	fmt.Println(broker.Committed("billing", "orders")[3])
	// Output:
	// <nil>
	// 1
}
