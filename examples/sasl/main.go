// Sasl reads a topic of a cluster that wants to know who it is: with a user and a
// password, or with a token. A password or token that comes from a file may be
// replaced there while it runs: each new connection reads the file again.
//
//	KAFKA_PASSWORD=... go run ./examples/sasl -brokers kafka-1:9094 -topic orders -mechanism SCRAM-SHA-512 -user alice
//	go run ./examples/sasl -brokers kafka-1:9094 -topic orders -mechanism OAUTHBEARER -secret-file token
//
// The secret is never a flag, which everybody on the machine could read. What is a
// flag can also be an environment variable, which -h names. It ends with Ctrl-C, or
// after as many messages as -messages says. The Dockerfile beside it makes an image.
package main

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/kgroup-go/kgroup"
)

type settings struct {
	brokers, group, topic string
	protocol              string
	ca                    string
	mechanism, user       string
	secretFile            string
	messages              int64
}

func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("sasl", flag.ContinueOnError)
	flags.StringVar(&s.brokers, "brokers", os.Getenv("KAFKA_BROKERS"), "addresses, `host:port,...` (KAFKA_BROKERS)")
	flags.StringVar(&s.group, "group", os.Getenv("KAFKA_GROUP"), "`name` of the consumer group (KAFKA_GROUP)")
	flags.StringVar(&s.topic, "topic", os.Getenv("KAFKA_TOPIC"), "`name` of the topic to read (KAFKA_TOPIC)")
	flags.StringVar(&s.protocol, "protocol", cmp.Or(os.Getenv("KAFKA_PROTOCOL"), "SASL_SSL"), "SASL_SSL or SASL_PLAINTEXT (KAFKA_PROTOCOL)")
	flags.StringVar(&s.ca, "ca", os.Getenv("KAFKA_CA"), "PEM `file` of the authorities that signed the brokers' certificates; without it the system's (KAFKA_CA)")
	flags.StringVar(&s.mechanism, "mechanism", cmp.Or(os.Getenv("KAFKA_MECHANISM"), "SCRAM-SHA-512"), "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER (KAFKA_MECHANISM)")
	flags.StringVar(&s.user, "user", os.Getenv("KAFKA_USER"), "`name`, not with OAUTHBEARER (KAFKA_USER)")
	flags.StringVar(&s.secretFile, "secret-file", os.Getenv("KAFKA_SECRET_FILE"), "`file` that has the password, or the token of OAUTHBEARER; without it the password is in KAFKA_PASSWORD (KAFKA_SECRET_FILE)")
	flags.Int64Var(&s.messages, "messages", 0, "end after this many; 0: with Ctrl-C")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, errors.New("there is an argument that belongs to no flag; a password is given by -secret-file or KAFKA_PASSWORD")
	}
	s.group = cmp.Or(s.group, "kgroup-example-sasl")
	return s, nil
}

// auth says who we are. A secret from the environment cannot change while we run, one
// in a file can.
func (s settings) auth() (kgroup.Auth, error) {
	hashes := map[string]crypto.Hash{"SCRAM-SHA-256": crypto.SHA256, "SCRAM-SHA-512": crypto.SHA512}
	hash := hashes[s.mechanism]
	password := os.Getenv("KAFKA_PASSWORD")
	switch {
	case s.mechanism == "OAUTHBEARER" && s.secretFile == "":
		return nil, errors.New("OAUTHBEARER needs a file with the token: -secret-file")
	case s.mechanism == "OAUTHBEARER":
		return kgroup.OAuthBearer(s.token), nil
	case s.mechanism == "PLAIN" && s.secretFile != "":
		return kgroup.PlainFunc(s.credentials), nil
	case s.mechanism == "PLAIN":
		return kgroup.Plain(s.user, password), nil
	case hash == 0:
		return nil, fmt.Errorf("mechanism %q is unknown; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER", s.mechanism)
	case s.secretFile != "":
		return kgroup.ScramFunc(hash, s.credentials), nil
	default:
		return kgroup.Scram(hash, s.user, password), nil
	}
}

func (s settings) credentials(context.Context) (user, password string, err error) {
	secret, err := s.secret()
	return s.user, secret, err
}

func (s settings) token(context.Context) (token string, extensions map[string]string, err error) {
	secret, err := s.secret()
	return secret, nil, err
}

// secret reads the file without the line break that editors and kubectl leave there.
func (s settings) secret() (string, error) {
	content, err := os.ReadFile(s.secretFile)
	return strings.TrimRight(string(content), "\r\n"), err
}

// config leaves it to kgroup to say what is missing.
func (s settings) config(handler kgroup.Handler) (kgroup.Config, error) {
	auth, err := s.auth()
	if err != nil {
		return kgroup.Config{}, err
	}
	config := kgroup.Config{
		Brokers: strings.FieldsFunc(s.brokers, func(r rune) bool { return r == ',' }),
		Group:   s.group,
		Topics:  kgroup.Topics{s.topic: {Handler: handler}},
		Auth:    auth,
	}
	switch s.protocol {
	case "SASL_SSL":
		config.TLS, err = kgroup.LoadTLS(kgroup.TLSFiles{CA: s.ca})
	case "SASL_PLAINTEXT": // where nobody else is on the network
	default:
		err = fmt.Errorf("protocol %q is unknown; use SASL_SSL or SASL_PLAINTEXT", s.protocol)
	}
	return config, err
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
