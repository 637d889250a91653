package kgroup_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kgroup-go/kgroup"
)

func ExamplePlain() {
	auth := kgroup.Plain("alice", "alice's secret")
	fmt.Println(auth)
	fmt.Printf("%+v\n", struct{ Auth kgroup.Auth }{auth})

	// A secret that is not where it was expected is found by New and Validate.
	err := kgroup.Config{
		Brokers: []string{"kafka-1:9093"},
		Group:   "billing",
		Topics:  kgroup.Topics{"orders": {Handler: kgroup.HandlerFunc(func(context.Context, kgroup.Message) error { return nil })}},
		Auth:    kgroup.Plain("alice", os.Getenv("NO_SUCH_VARIABLE")),
	}.Validate()
	fmt.Println(err)
	// Output:
	// PLAIN as alice
	// {Auth:PLAIN as alice}
	// kgroup: config: Auth: PLAIN: the password is empty
}

func ExampleScram() {
	fmt.Println(kgroup.Scram(crypto.SHA512, "alice", "alice's secret"))
	// Output:
	// SCRAM-SHA-512 as alice
}

// A password that is read from its file at each new connection may be changed there
// while the consumer runs.
func ExampleScramFunc() {
	fromFile := func(path string) func(context.Context) (user, password string, err error) {
		return func(context.Context) (string, string, error) {
			secret, err := os.ReadFile(path)
			return "alice", strings.TrimSpace(string(secret)), err
		}
	}
	fmt.Println(kgroup.ScramFunc(crypto.SHA256, fromFile("/run/secrets/kafka")))
	// Output:
	// SCRAM-SHA-256
}

// A vault that hands out a user together with its password.
func ExamplePlainFunc() {
	type lease struct{ user, password string }
	ask := func(ctx context.Context) (lease, error) { // what the client of the vault does
		if ctx.Err() != nil {
			return lease{}, context.Cause(ctx)
		}
		return lease{"v-billing-7", "hvs.4711"}, nil
	}
	fmt.Println(kgroup.PlainFunc(func(ctx context.Context) (user, password string, err error) {
		l, err := ask(ctx)
		return l.user, l.password, err
	}))
	// Output:
	// PLAIN
}

// Extensions go with the token; Confluent Cloud, say, wants to know the cluster.
func ExampleOAuthBearer() {
	fmt.Println(kgroup.OAuthBearer(func(context.Context) (string, map[string]string, error) {
		token, err := os.ReadFile("/var/run/secrets/tokens/kafka") // as Kubernetes projects it, and renews it
		return strings.TrimSpace(string(token)), map[string]string{"logicalCluster": "lkc-4711"}, err
	}))
	// Output:
	// OAUTHBEARER
}

func ExampleLoadTLS() {
	config, err := kgroup.LoadTLS(kgroup.TLSFiles{CA: "no/such/ca.pem"})
	fmt.Println(config == nil, errors.Is(err, os.ErrNotExist))
	fmt.Println(filepath.ToSlash(err.Error()))
	// Output:
	// true true
	// kgroup: load TLS files: open no/such/ca.pem: no such file or directory
}
