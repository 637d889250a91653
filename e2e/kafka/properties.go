package kafka

// What a broker is configured with: a plain map, and its text as a properties
// file. Pure, so that tests need no broker.

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The names of the listeners that every broker has.
const (
	plaintext  = "PLAINTEXT"
	controller = "CONTROLLER"
)

// An endpoint set is where the listeners of one node are: host:port by name.
type endpoints map[string]string

// properties returns the configuration of node id (from 1) of the cluster.
// Its files are in dir.
func properties(o Options, rel release, nodes []endpoints, id int, zkAddr, dir string) map[string]string {
	replicas := strconv.Itoa(len(nodes))
	p := map[string]string{
		"log.dirs":                   filepath.Join(dir, "data"),
		"default.replication.factor": replicas,
		// Tests time rebalances. The usual 3 s wait for more members would hide
		// everything else; sessions shorter than 6 s keep the tests short.
		"group.initial.rebalance.delay.ms": "0",
		"group.min.session.timeout.ms":     "1000",
		// A consumer under test must not create topics by asking for them.
		"auto.create.topics.enable": "false",
		// Few partitions, or the first group of a cluster waits for 50 to be made.
		"offsets.topic.num.partitions":             "5",
		"offsets.topic.replication.factor":         replicas,
		"transaction.state.log.num.partitions":     "5",
		"transaction.state.log.replication.factor": replicas,
		"transaction.state.log.min.isr":            strconv.Itoa(len(nodes)/2 + 1),
	}
	var listeners, advertised, protocols []string
	for _, name := range slices.Sorted(maps.Keys(nodes[id-1])) {
		at := name + "://" + nodes[id-1][name]
		listeners = append(listeners, at)
		protocol := plaintext
		if name != controller {
			advertised = append(advertised, at)
			if extra, ok := o.Listeners[name]; ok {
				protocol = extra
			}
		}
		protocols = append(protocols, name+":"+protocol)
	}
	p["listeners"] = strings.Join(listeners, ",")
	p["advertised.listeners"] = strings.Join(advertised, ",")
	p["listener.security.protocol.map"] = strings.Join(protocols, ",")
	p["inter.broker.listener.name"] = plaintext

	if rel.zooKeeper != "" {
		p["broker.id"] = strconv.Itoa(id)
		p["zookeeper.connect"] = zkAddr
		p["zookeeper.session.timeout.ms"] = "4000"
	} else {
		var voters []string
		for i, node := range nodes {
			voters = append(voters, fmt.Sprintf("%d@%s", i+1, node[controller]))
		}
		p["process.roles"] = "broker,controller"
		p["node.id"] = strconv.Itoa(id)
		p["controller.quorum.voters"] = strings.Join(voters, ",")
		p["controller.listener.names"] = controller
		// A killed broker may come back, and one that hangs is given up, when its
		// session with the controllers has ended: 9 s by default.
		p["broker.session.timeout.ms"] = "4000"
		p["broker.heartbeat.interval.ms"] = "500"
	}
	if o.Security != nil {
		maps.Copy(p, o.Security.properties(rel, dir))
	}
	maps.Copy(p, o.Properties)
	return p
}

var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)

// format writes properties the way java.util.Properties reads them.
func format(p map[string]string) []byte {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&b, "%s=%s\n", key, escape.Replace(p[key]))
	}
	return []byte(b.String())
}
