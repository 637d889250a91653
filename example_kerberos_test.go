package kgroup_test

import (
	"fmt"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup"
)

// Kerberos is sarama's own, turned on by Tune. The README says what is lost with it.
func ExampleConfig_kerberos() {
	config := kgroup.Config{
		Brokers: []string{"kafka-1.example.com:9093"}, // by the names that the brokers' principals have
		Group:   "billing",
		Topics:  kgroup.Topics{"orders": {}}, // New wants a Handler in each
		// TLS as always. Auth must stay unset.
		Tune: func(c *cluster.Config) {
			c.Net.SASL.Enable = true
			c.Net.SASL.Mechanism = sarama.SASLTypeGSSAPI
			c.Net.SASL.GSSAPI = sarama.GSSAPIConfig{
				ServiceName:        "kafka", // the brokers' sasl.kerberos.service.name
				AuthType:           sarama.KRB5_KEYTAB_AUTH,
				KeyTabPath:         "/etc/billing.keytab",
				Username:           "billing",
				Realm:              "EXAMPLE.COM",
				KerberosConfigPath: "/etc/krb5.conf",
			}
		},
	}
	// Pass it to New. For a loop of one's own:
	built, err := config.ClusterConfig()
	fmt.Println(built.Net.SASL.Mechanism, err)
	// Output: GSSAPI <nil>
}
