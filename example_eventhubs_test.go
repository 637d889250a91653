package kgroup_test

import (
	"fmt"
	"os"

	"github.com/kgroup-go/kgroup"
)

// Azure Event Hubs with a connection string: the user is the word "$ConnectionString",
// the password the string, which names the namespace and contains a key.
func ExamplePlain_azureEventHubs() {
	connection := os.Getenv("EVENTHUBS_CONNECTION_STRING")
	if connection == "" {
		connection = "Endpoint=sb://billing.servicebus.windows.net/;SharedAccessKeyName=listen;SharedAccessKey=c2VjcmV0"
	}
	tls, err := kgroup.LoadTLS(kgroup.TLSFiles{}) // with the CAs of the operating system
	if err != nil {
		fmt.Println(err)
		return
	}
	config := kgroup.Config{
		Brokers: []string{"billing.servicebus.windows.net:9093"},
		TLS:     tls,
		Auth:    kgroup.Plain("$ConnectionString", connection),
		// Group, Topics ...
	}
	fmt.Println(config.Auth)
	// Output:
	// PLAIN as $ConnectionString
}
