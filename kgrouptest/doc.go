// Package kgrouptest is a Kafka broker inside a test: no Docker, no Java, no
// waiting. It speaks the Kafka protocol on loopback ports, keeps everything in
// memory, and serves any client, in particular the old consumer protocol of
// sarama-cluster that kgroup drives. It knows nothing of kgroup, so that it can
// be used without it.
//
//	func TestBilling(t *testing.T) {
//		broker := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 4})
//		// … run the service on broker.Addrs() …
//		require.NoError(t, broker.Produce("orders", kgrouptest.Record{Value: []byte(`{"id": 1}`)}))
//		require.NoError(t, broker.WaitCommitted(t.Context(), "billing", "orders"))
//	}
//
// [Start] ends with the test. Programs use [New], which takes a [Config] with
// more nodes, TLS or SASL, and close the broker themselves.
//
// Trouble comes in three strengths. [Broker.Stop] refuses connections until
// [Broker.Restart], on the same addresses and with the same data.
// [Broker.Disconnect] breaks the connections there are. [Broker.Cluster] gives the
// fake cluster underneath, whose Fault and ControlKey answer any request with any
// error, late, or not at all, and which moves leaders and coordinators.
//
// The Broker's own methods do not use the network: they work while it is stopped.
// They are safe for concurrent use.
//
// Underneath is kfake, of the franz-go project. What it does differently from
// Kafka, where a consumer group would notice, is put right here: JoinGroup v0
// gets the rebalance timeout Kafka gives it; a member waiting in JoinGroup or
// SyncGroup keeps its session, and loses it when its connection has broken; a
// member that leaves gets its waiting JoinGroup answered. Some differences are left:
// each member that joins starts the rebalance timeout anew; after a member has left
// in the middle of its SyncGroup the next rebalance lasts until that timeout; and a
// member without an id (its first JoinGroup, up to version 3) stays for ever if its
// connection breaks while it waits. Sessions may be as short as 300 ms; there is no
// initial rebalance delay.
package kgrouptest
