package main

// Connections: encrypted or not, and who we are. Two clients need to know: kgroup, which
// reads, and franz-go, which writes.

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/kgroup-go/kgroup"
)

type security struct {
	protocol        string
	files           kgroup.TLSFiles
	serverName      string
	mechanism, user string
	secretFile      string
}

func (s *security) flags(flags *flag.FlagSet) {
	flags.StringVar(&s.protocol, "protocol", cmp.Or(os.Getenv("KAFKA_PROTOCOL"), "PLAINTEXT"), "PLAINTEXT, SSL, SASL_SSL or SASL_PLAINTEXT (KAFKA_PROTOCOL)")
	flags.StringVar(&s.files.CA, "ca", os.Getenv("KAFKA_CA"), "PEM `file` of the authorities that signed the brokers' certificates; without it the system's (KAFKA_CA)")
	flags.StringVar(&s.files.Cert, "cert", os.Getenv("KAFKA_CERT"), "PEM `file` of the client certificate, if the brokers want one (KAFKA_CERT)")
	flags.StringVar(&s.files.Key, "cert-key", os.Getenv("KAFKA_CERT_KEY"), "PEM `file` of its private key (KAFKA_CERT_KEY)")
	flags.StringVar(&s.serverName, "server-name", os.Getenv("KAFKA_SERVER_NAME"), "`name` in the brokers' certificates, if it is not the one in their addresses (KAFKA_SERVER_NAME)")
	flags.StringVar(&s.mechanism, "mechanism", cmp.Or(os.Getenv("KAFKA_MECHANISM"), "SCRAM-SHA-512"), "of SASL: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER (KAFKA_MECHANISM)")
	flags.StringVar(&s.user, "user", os.Getenv("KAFKA_USER"), "`name`, not with OAUTHBEARER (KAFKA_USER)")
	flags.StringVar(&s.secretFile, "secret-file", os.Getenv("KAFKA_SECRET_FILE"), "`file` that has the password, or the token of OAUTHBEARER; without it the secret is in KAFKA_PASSWORD (KAFKA_SECRET_FILE)")
}

// options are the settings of both clients.
func (s security) options() (config kgroup.Config, opts []kgo.Opt, err error) {
	encrypted, authenticated := false, false
	switch s.protocol {
	case "PLAINTEXT":
	case "SSL":
		encrypted = true
	case "SASL_SSL":
		encrypted, authenticated = true, true
	case "SASL_PLAINTEXT": // where nobody else is on the network
		authenticated = true
	default:
		return config, nil, fmt.Errorf("protocol %q is unknown; use PLAINTEXT, SSL, SASL_SSL or SASL_PLAINTEXT", s.protocol)
	}
	if encrypted {
		if config.TLS, err = s.tls(); err != nil {
			return config, nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(config.TLS))
	}
	if authenticated {
		auth, mechanism, err := s.auth()
		if err != nil {
			return config, nil, err
		}
		config.Auth = auth
		opts = append(opts, kgo.SASL(mechanism))
	}
	return config, opts, nil
}

func (s security) tls() (*tls.Config, error) {
	config, err := kgroup.LoadTLS(s.files)
	if err != nil {
		return nil, err
	}
	config.ServerName = s.serverName
	return config, nil
}

func (s security) auth() (kgroup.Auth, sasl.Mechanism, error) {
	switch s.mechanism {
	case "PLAIN":
		return kgroup.PlainFunc(s.credentials), plain.Plain(func(ctx context.Context) (plain.Auth, error) {
			user, password, err := s.credentials(ctx)
			return plain.Auth{User: user, Pass: password}, err
		}), nil
	case "SCRAM-SHA-256":
		return kgroup.ScramFunc(crypto.SHA256, s.credentials), scram.Sha256(s.scram), nil
	case "SCRAM-SHA-512":
		return kgroup.ScramFunc(crypto.SHA512, s.credentials), scram.Sha512(s.scram), nil
	case "OAUTHBEARER":
		return kgroup.OAuthBearer(s.token), oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
			token, _, err := s.token(ctx)
			return oauth.Auth{Token: token}, err
		}), nil
	default:
		return nil, nil, fmt.Errorf("mechanism %q is unknown; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER", s.mechanism)
	}
}

func (s security) scram(ctx context.Context) (scram.Auth, error) {
	user, password, err := s.credentials(ctx)
	return scram.Auth{User: user, Pass: password}, err
}

func (s security) credentials(context.Context) (user, password string, err error) {
	secret, err := s.secret()
	return s.user, secret, err
}

func (s security) token(context.Context) (token string, extensions map[string]string, err error) {
	secret, err := s.secret()
	return secret, nil, err
}

// secret reads the file at each new connection, without the line break that editors
// and kubectl leave there.
func (s security) secret() (string, error) {
	if s.secretFile == "" {
		if secret := os.Getenv("KAFKA_PASSWORD"); secret != "" {
			return secret, nil
		}
		return "", errors.New("no secret: name its file with -secret-file, or set KAFKA_PASSWORD")
	}
	content, err := os.ReadFile(s.secretFile)
	return strings.TrimRight(string(content), "\r\n"), err
}
