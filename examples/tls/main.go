// Tls reads a topic of a cluster that wants TLS, and a client certificate if it is
// given one. The files may be replaced while it runs: each new connection reads them
// again.
//
//	go run ./examples/tls -brokers kafka-1:9093 -topic orders -ca ca.pem -cert client.pem -key client.key
//
// What is a flag can also be an environment variable, which -h names. It ends with
// Ctrl-C, or after as many messages as -messages says.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	// For an image that has no root certificates at all, like scratch: those of
	// Mozilla, as of the day when this program was built. They are used only where
	// the system has none, so an image with ca-certificates stays in charge.
	_ "golang.org/x/crypto/x509roots/fallback"

	"github.com/kgroup-go/kgroup"
)

type settings struct {
	brokers, group, topic string
	files                 kgroup.TLSFiles
	serverName            string
	messages              int64
}

func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("tls", flag.ContinueOnError)
	flags.StringVar(&s.brokers, "brokers", os.Getenv("KAFKA_BROKERS"), "addresses, `host:port,...` (KAFKA_BROKERS)")
	flags.StringVar(&s.group, "group", os.Getenv("KAFKA_GROUP"), "`name` of the consumer group (KAFKA_GROUP)")
	flags.StringVar(&s.topic, "topic", os.Getenv("KAFKA_TOPIC"), "`name` of the topic to read (KAFKA_TOPIC)")
	flags.StringVar(&s.files.CA, "ca", os.Getenv("KAFKA_CA"), "PEM `file` of the authorities that signed the brokers' certificates; without it the system's (KAFKA_CA)")
	flags.StringVar(&s.files.Cert, "cert", os.Getenv("KAFKA_CERT"), "PEM `file` of the client certificate, if the brokers want one (KAFKA_CERT)")
	flags.StringVar(&s.files.Key, "key", os.Getenv("KAFKA_KEY"), "PEM `file` of its private key (KAFKA_KEY)")
	flags.StringVar(&s.serverName, "server-name", os.Getenv("KAFKA_SERVER_NAME"), "`name` in the brokers' certificates, if it is not the one in their addresses (KAFKA_SERVER_NAME)")
	flags.Int64Var(&s.messages, "messages", 0, "end after this many; 0: with Ctrl-C")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, errors.New("there is an argument that belongs to no flag")
	}
	s.group = cmp.Or(s.group, "kgroup-example-tls")
	return s, nil
}

// config leaves it to kgroup to say what is missing.
func (s settings) config(handler kgroup.Handler) (kgroup.Config, error) {
	tls, err := kgroup.LoadTLS(s.files)
	if err != nil {
		return kgroup.Config{}, err
	}
	tls.ServerName = s.serverName
	return kgroup.Config{
		Brokers: strings.FieldsFunc(s.brokers, func(r rune) bool { return r == ',' }),
		Group:   s.group,
		Topics:  kgroup.Topics{s.topic: {Handler: handler}},
		TLS:     tls,
	}, nil
}

func run(args []string) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	var handled atomic.Int64
	config, err := s.config(kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
		fmt.Printf("%s/%d at %d: %s\n", msg.Topic, msg.Partition, msg.Offset, msg.Value)
		if handled.Add(1) == s.messages {
			stop()
		}
		return nil
	}))
	if err != nil {
		return err
	}
	consumer, err := kgroup.New(config)
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // kgroup tells at Info when it joins, rebalances and stops
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("stopped: everything that was handled has been committed")
}
