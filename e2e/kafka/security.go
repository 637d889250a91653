//go:build unix

package kafka

// What secures a cluster: listeners with TLS and SASL, users, an authorizer. Who
// may read what is in acl.go.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/kgroup-go/kgroup/e2e/certs"
)

// The listeners that every node has with [Security], beside the plaintext one. They
// are on 127.0.0.1, each with a port of its own: see [Cluster.ListenerAddrs].
const (
	SSL           = "SSL"            // TLS
	MTLS          = "MTLS"           // TLS, and clients must present a certificate
	SASLSSL       = "SASL_SSL"       // TLS and SASL
	SASLPlaintext = "SASL_PLAINTEXT" // SASL alone
	Reauth        = "REAUTH"         // TLS and SASL, with sessions that end; only if Security.Reauth is set
)

// Security gives a cluster the listeners above. SASL is PLAIN, SCRAM-SHA-256,
// SCRAM-SHA-512 and OAUTHBEARER (not on Kafka 1.1) with tokens that nobody has
// signed: see [UnsecuredToken].
//
// An authorizer is at work, and lets everybody do everything, until
// [Admin.RestrictTopic] or [Admin.RestrictGroup] says otherwise. A client that has
// not said who it is may always do everything: it comes through the plaintext
// listener or SSL, and is called User:ANONYMOUS.
//
// What a listener should do otherwise goes into Options.Properties, for example
// "listener.name.ssl.ssl.client.auth": "requested".
type Security struct {
	// CA signs the nodes' certificates, and those of the clients that are trusted.
	// Nil: one is made, see [Cluster.CA].
	CA *certs.Authority

	// Users have a password each, the same in PLAIN, SCRAM-SHA-256 and
	// SCRAM-SHA-512. Letters, digits, - and _ only.
	Users map[string]string

	// Reauth is how long a session lasts on the listener of that name, before the
	// client must authenticate again (connections.max.reauth.ms); zero: there is no
	// such listener. Not on Kafka 1.1.
	Reauth time.Duration
}

// storePassword protects nothing: the stores are as safe as the folder they are in.
const storePassword = "changeit"

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// secure completes what the options say about security, in copies of what the caller
// still holds.
func (o *Options) secure() error {
	if o.Security == nil {
		return nil
	}
	s := *o.Security
	s.Users = maps.Clone(s.Users)
	for user, password := range s.Users {
		if !plainWord.MatchString(user) || !plainWord.MatchString(password) {
			return fmt.Errorf("user %q: name and password must be letters, digits, - and _, or Java's configuration needs quoting", user)
		}
	}
	if releases[o.Version].early && s.Reauth != 0 {
		return errors.New("no re-authentication before Kafka 2.2")
	}
	if s.CA == nil {
		ca, err := certs.NewAuthority("e2e")
		if err != nil {
			return err
		}
		s.CA = ca
	}
	o.Security = &s
	o.Listeners = maps.Clone(o.Listeners)
	if o.Listeners == nil {
		o.Listeners = map[string]string{}
	}
	maps.Copy(o.Listeners, s.listeners())
	return nil
}

func (s *Security) listeners() map[string]string {
	all := map[string]string{SSL: "SSL", MTLS: "SSL", SASLSSL: "SASL_SSL", SASLPlaintext: "SASL_PLAINTEXT"}
	if s.Reauth > 0 {
		all[Reauth] = "SASL_SSL"
	}
	return all
}

// properties are what the configuration of a node needs for it. Its stores are in
// dir.
func (s *Security) properties(rel release, dir string) map[string]string {
	jaas := s.mechanisms(rel)
	p := map[string]string{
		"ssl.keystore.type":       "PKCS12",
		"ssl.keystore.location":   filepath.Join(dir, keyStore),
		"ssl.keystore.password":   storePassword,
		"ssl.key.password":        storePassword,
		"ssl.truststore.type":     "PKCS12",
		"ssl.truststore.location": filepath.Join(dir, trustStore),
		"ssl.truststore.password": storePassword,

		"listener.name.mtls.ssl.client.auth": "required",
		"sasl.enabled.mechanisms":            strings.Join(slices.Sorted(maps.Keys(jaas)), ","),

		"authorizer.class.name":          "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":                    anonymous,
		"allow.everyone.if.no.acl.found": "true",
	}
	if rel.authorizer != "" {
		p["authorizer.class.name"] = rel.authorizer
	}
	for name, protocol := range s.listeners() {
		if !strings.HasPrefix(protocol, "SASL") {
			continue
		}
		for mechanism, module := range jaas {
			key := fmt.Sprintf("listener.name.%s.%s.sasl.jaas.config", strings.ToLower(name), strings.ToLower(mechanism))
			p[key] = module
		}
	}
	if s.Reauth > 0 {
		p["listener.name.reauth.connections.max.reauth.ms"] = strconv.FormatInt(s.Reauth.Milliseconds(), 10)
	}
	return p
}

// mechanisms are SASL's by name, each with its line for Java.
func (s *Security) mechanisms(rel release) map[string]string {
	plain := "org.apache.kafka.common.security.plain.PlainLoginModule required"
	for _, user := range slices.Sorted(maps.Keys(s.Users)) {
		plain += fmt.Sprintf(" user_%s=%q", user, s.Users[user])
	}
	all := map[string]string{
		"PLAIN":         plain + ";",
		"SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
	}
	if !rel.early {
		// The claim is the broker's own, which it makes and never uses.
		all["OAUTHBEARER"] = `org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`
	}
	return all
}

const (
	keyStore   = "key.p12"
	trustStore = "trust.p12"
)

// writeStores gives the node a certificate for where its listeners are.
func (n *Node) writeStores() error {
	s := n.cluster.opts.Security
	if s == nil {
		return nil
	}
	cert, err := s.CA.Issue(certs.Template{Name: fmt.Sprintf("node-%d", n.id), Hosts: []string{"127.0.0.1", "localhost"}})
	if err != nil {
		return err
	}
	trusted, err := s.CA.TrustStore(storePassword)
	if err != nil {
		return err
	}
	if err := certs.Replace(filepath.Join(n.dir, trustStore), trusted); err != nil {
		return err
	}
	return n.SetCertificate(cert)
}

// SetCertificate replaces the certificate of the TLS listeners. The broker reads it
// when it is started again.
func (n *Node) SetCertificate(c certs.Certificate) error {
	store, err := c.KeyStore(storePassword)
	if err != nil {
		return fmt.Errorf("certificate of node %d: %w", n.id, err)
	}
	return certs.Replace(filepath.Join(n.dir, keyStore), store)
}

// CA returns what has signed the nodes' certificates, and signs those of clients;
// nil without [Security].
func (c *Cluster) CA() *certs.Authority {
	if c.opts.Security == nil {
		return nil
	}
	return c.opts.Security.CA
}

// addUsers makes the SCRAM users, as long as brokers can be told of them. They know
// PLAIN's from their configuration.
func (c *Cluster) addUsers(ctx context.Context) error {
	s := c.opts.Security
	if s == nil || c.rel.early || len(s.Users) == 0 {
		return nil
	}
	if err := c.setPasswords(ctx, s.Users); err != nil {
		return err
	}
	for user, password := range s.Users {
		if err := c.awaitLogin(ctx, user, password, nil); err != nil {
			return err
		}
	}
	return nil
}

// toolUsers makes the SCRAM users of brokers that cannot be told.
func (c *Cluster) toolUsers(ctx context.Context, zkAddr string) error {
	if c.opts.Security == nil || !c.rel.early {
		return nil
	}
	dist, err := Install(ctx, c.rel.zooKeeper)
	if err != nil {
		return err
	}
	for user, password := range c.opts.Security.Users {
		out, err := exec.CommandContext(ctx, "java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", logLevel, "-cp", c.classpath(dist),
			"kafka.admin.ConfigCommand", "--zookeeper", zkAddr, "--alter", "--entity-type", "users", "--entity-name", user,
			"--add-config", fmt.Sprintf("SCRAM-SHA-256=[password=%s],SCRAM-SHA-512=[password=%[1]s]", password)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("add user %s: %w\n%s", user, err, lastLines(out))
		}
	}
	return nil
}

// SetPassword gives a user a new password for SCRAM, or makes the user, and returns
// when every node that runs wants it. PLAIN has the users that the cluster was
// started with. Kafka 1.1 cannot do it.
func (c *Cluster) SetPassword(ctx context.Context, user, password string) error {
	if err := c.setPasswords(ctx, map[string]string{user: password}); err != nil {
		return err
	}
	return c.awaitLogin(ctx, user, password, nil)
}

// RemoveUser takes the SCRAM credentials of a user away, and returns when no node
// that runs knows them any more. Open connections stay.
func (c *Cluster) RemoveUser(ctx context.Context, user string) error {
	for _, m := range scramMechanisms {
		if err := c.alterUsers(ctx, []kadm.DeleteSCRAM{{User: user, Mechanism: m}}, nil); err != nil {
			return err
		}
	}
	return c.awaitLogin(ctx, user, "any", kerr.SaslAuthenticationFailed)
}

// scramMechanisms are in the order in which brokers are told of a user. In one
// request a user may be mentioned only once.
var scramMechanisms = []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512}

func (c *Cluster) setPasswords(ctx context.Context, users map[string]string) error {
	const fewest = 4096 // iterations, which the client must do
	for _, m := range scramMechanisms {
		var upserts []kadm.UpsertSCRAM
		for user, password := range users {
			upserts = append(upserts, kadm.UpsertSCRAM{User: user, Password: password, Mechanism: m, Iterations: fewest})
		}
		if err := c.alterUsers(ctx, nil, upserts); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) alterUsers(ctx context.Context, del []kadm.DeleteSCRAM, upsert []kadm.UpsertSCRAM) error {
	a, err := NewAdmin(c.Addrs())
	if err != nil {
		return err
	}
	defer a.Close()
	resp, err := a.adm.AlterUserSCRAMs(ctx, del, upsert)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("alter SCRAM users: %w", err)
	}
	return nil
}

// awaitLogin waits until every node that runs answers a login with want. Each learns
// in its own time, but in the order in which things happened: the last mechanism will
// do.
func (c *Cluster) awaitLogin(ctx context.Context, user, password string, want error) error {
	for _, n := range c.nodes {
		if n.p == nil {
			continue
		}
		what := fmt.Sprintf("node %d to answer a login of %s with %v", n.id, user, want)
		if err := poll(ctx, what, func(ctx context.Context) error {
			if err := login(ctx, n.at[SASLPlaintext], user, password); !errors.Is(err, want) {
				return fmt.Errorf("it answers %w", err)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func login(ctx context.Context, addr, user, password string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha512Mechanism()))
	if err != nil {
		return err
	}
	defer cl.Close()
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{}
	_, err = req.RequestWith(ctx, cl.SeedBrokers()[0])
	return err
}

// UnsecuredToken is an OAUTHBEARER token that says who somebody is, valid for so
// long from now on, without proof. With a lifetime below zero it has expired.
func UnsecuredToken(subject string, lifetime time.Duration) string {
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"sub": subject,
		"iat": now.Add(min(0, 2*lifetime)).Unix(),
		"exp": now.Add(lifetime).Unix(),
	})
	if err != nil {
		panic(err) // two numbers and a string
	}
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(claims) + "."
}
