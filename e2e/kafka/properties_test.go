package kafka

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestProperties(t *testing.T) {
	nodes := []endpoints{
		{plaintext: "127.0.0.1:1", controller: "127.0.0.1:2", "LOGIN": "127.0.0.1:3"},
		{plaintext: "127.0.0.1:4", controller: "127.0.0.1:5", "LOGIN": "127.0.0.1:6"},
		{plaintext: "127.0.0.1:7", controller: "127.0.0.1:8", "LOGIN": "127.0.0.1:9"},
	}
	p := properties(Options{
		Listeners:  map[string]string{"LOGIN": "SASL_PLAINTEXT"},
		Properties: map[string]string{"offsets.topic.num.partitions": "1", "sasl.enabled.mechanisms": "PLAIN"},
	}, releases["4.4.0"], nodes, 2, "", "/node")
	for key, want := range map[string]string{
		"node.id":                                  "2",
		"process.roles":                            "broker,controller",
		"controller.quorum.voters":                 "1@127.0.0.1:2,2@127.0.0.1:5,3@127.0.0.1:8",
		"listeners":                                "CONTROLLER://127.0.0.1:5,LOGIN://127.0.0.1:6,PLAINTEXT://127.0.0.1:4",
		"advertised.listeners":                     "LOGIN://127.0.0.1:6,PLAINTEXT://127.0.0.1:4",
		"listener.security.protocol.map":           "CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT,PLAINTEXT:PLAINTEXT",
		"log.dirs":                                 "/node/data",
		"offsets.topic.replication.factor":         "3",
		"transaction.state.log.replication.factor": "3",
		"transaction.state.log.min.isr":            "2",
		"offsets.topic.num.partitions":             "1", // replaced
		"sasl.enabled.mechanisms":                  "PLAIN",
	} {
		assert.Equal(t, want, p[key], key)
	}

	p = properties(Options{}, releases["1.1.1"], []endpoints{{plaintext: "127.0.0.1:1"}}, 1, "127.0.0.1:2", "/node")
	assert.Equal(t, "127.0.0.1:2", p["zookeeper.connect"])
	assert.Equal(t, "1", p["broker.id"])
	assert.NotContains(t, p, "process.roles")
	assert.Equal(t, "1", p["transaction.state.log.min.isr"])
}

func TestFormat(t *testing.T) {
	assert.Equal(t, "a=1\nb=C:\\\\x\\nd\n", string(format(map[string]string{"b": "C:\\x\nd", "a": "1"})))
}

func TestFreeAddrs(t *testing.T) {
	addrs, err := freeAddrs(20)
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		require.NoError(t, err)
		n, err := strconv.Atoi(port)
		require.NoError(t, err)
		assert.Equal(t, "127.0.0.1", host)
		assert.Less(t, n, 32768, "a client may be given this port as its own")
		assert.False(t, seen[addr], "%s twice", addr)
		seen[addr] = true
	}
}
