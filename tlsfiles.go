package kgroup

// Whom we trust, and who we are to TLS: PEM files that may change while a consumer
// runs. What a connection makes of them is in internal/wire; passwords and tokens are
// in auth.go.

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// TLSFiles names PEM files for [LoadTLS].
type TLSFiles struct {
	// CA has the certificates of the authorities that signed those of the brokers. A
	// broker is trusted if one of them has. Empty: the roots of the operating system,
	// which some container images do not have.
	CA string

	// Cert has the client certificate, and after it the intermediate ones up to an
	// authority that the brokers trust. Key has its private key, unencrypted. They may
	// be one file. Both empty: there is no client certificate.
	Cert, Key string
}

// LoadTLS reads files and returns TLS settings for [Config], of version 1.2 or later.
//
// It is an error, naming the file and what is wrong with it, if one cannot be read, is
// empty or is not PEM; if the key does not belong to the certificate; if the client
// certificate, or every certificate in CA, has expired; and if there is neither a CA
// nor a root certificate of the operating system.
//
// The files are read again for each new connection of a consumer, so that one which
// was replaced is used from then on, without a restart. While what was read anew is
// damaged, half-written, expired, or key and certificate do not belong together,
// what was there before stays in use; an error to connect then says so. A client
// certificate that has expired meanwhile is not sent: the error says when it did.
//
// The result may be changed, a ServerName be added say, but for its RootCAs and its
// ClientSessionCache. For anything else than a consumer, an HTTP client say, it is a
// usual tls.Config: the client certificate is read again there too, but the
// authorities stay what they were.
func LoadTLS(files TLSFiles) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var reloads []func(*tls.Config) error
	var errs []error

	if files.CA == "" {
		errs = append(errs, checkSystemRoots())
	} else {
		ca := &pemFiles[*x509.CertPool]{paths: []string{files.CA}, parse: func(content [][]byte) (*x509.CertPool, error) {
			return parseCA(files.CA, content[0])
		}}
		reload := func(c *tls.Config) (err error) {
			c.RootCAs, err = ca.load()
			return err
		}
		errs = append(errs, reload(config))
		reloads = append(reloads, reload)
	}

	switch {
	case files.Cert == "" && files.Key == "":
	case files.Key == "":
		errs = append(errs, errors.New("there is a Cert but no Key: name the file of its private key, which may be the same"))
	case files.Cert == "":
		errs = append(errs, errors.New("there is a Key but no Cert: name the file of the client certificate"))
	default:
		pair := &pemFiles[*tls.Certificate]{paths: []string{files.Cert, files.Key}, parse: func(content [][]byte) (*tls.Certificate, error) {
			return parsePair(files, content[0], content[1])
		}}
		reload := func(*tls.Config) error {
			_, err := pair.load()
			return err
		}
		errs = append(errs, reload(nil))
		reloads = append(reloads, reload)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, stale := pair.load()
			if err := checkExpiry(certificate.Leaf); err != nil {
				return nil, errors.Join(fmt.Errorf("client certificate %s: %w", files.Cert, err), stale)
			}
			return certificate, nil
		}
	}

	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("kgroup: load TLS files: %w", err)
	}
	if len(reloads) > 0 {
		config.SessionTicketsDisabled = true
		config.ClientSessionCache = wire.Reload(func(c *tls.Config) error {
			var errs []error
			for _, reload := range reloads {
				errs = append(errs, reload(c))
			}
			return errors.Join(errs...)
		})
	}
	return config, nil
}

// pemFiles is what was made of some files, and is made anew when their content has
// changed. Times are not asked: two versions may be of the same second, and a
// mounted Kubernetes secret changes by a link.
type pemFiles[T any] struct {
	paths []string
	parse func(content [][]byte) (T, error)
	known atomic.Pointer[pemContent[T]]
}

type pemContent[T any] struct {
	sums [][sha256.Size]byte // instead of the content, which may be a private key
	good T                   // made of it or, if err is not nil, of what was there before
	err  error
}

// load returns what is in the files now. If that cannot be used it returns why, and
// what was there before, if anything.
func (p *pemFiles[T]) load() (good T, err error) {
	known := p.known.Load()
	if known != nil {
		good = known.good
	}
	content := make([][]byte, len(p.paths))
	sums := make([][sha256.Size]byte, len(p.paths))
	for i, path := range p.paths {
		if content[i], err = os.ReadFile(path); err != nil {
			return good, err // names the file
		}
		sums[i] = sha256.Sum256(content[i])
	}
	if known != nil && slices.Equal(sums, known.sums) {
		return known.good, known.err
	}
	parsed, err := p.parse(content)
	if err == nil {
		good = parsed
	}
	p.known.Store(&pemContent[T]{sums, good, err})
	return good, err
}

// parseCA takes every certificate, or none: what AppendCertsFromPEM would skip is
// half a file, and the authority of some broker.
func parseCA(path string, content []byte) (*x509.CertPool, error) {
	blocks, err := decodePEM(content)
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	var found, valid int
	var expired error
	for _, block := range blocks {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA %s: %w", path, err)
		}
		found++
		pool.AddCert(certificate) // an old one too: it may be what the error of a handshake has to name
		if err := checkExpiry(certificate); err != nil {
			expired = err
			continue
		}
		valid++
	}
	switch {
	case found == 0:
		return nil, fmt.Errorf("CA %s: it has no certificate, but this: %s", path, strings.ToLower(blocks[0].Type))
	case valid == 0:
		return nil, fmt.Errorf("CA %s: %w", path, expired)
	}
	return pool, nil
}

func parsePair(files TLSFiles, cert, key []byte) (*tls.Certificate, error) {
	if _, err := decodePEM(cert); err != nil {
		return nil, fmt.Errorf("client certificate %s: %w", files.Cert, err)
	}
	blocks, err := decodePEM(key)
	if err != nil {
		return nil, fmt.Errorf("private key %s: %w", files.Key, err)
	}
	for _, block := range blocks {
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, fmt.Errorf("private key %s: it is encrypted, and there is nobody to ask for its password; decrypt it: openssl pkey -in %[1]s", files.Key)
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate %s and key %s: %w", files.Cert, files.Key, err)
	}
	if err := checkExpiry(pair.Leaf); err != nil {
		return nil, fmt.Errorf("client certificate %s: %w", files.Cert, err)
	}
	if usage := pair.Leaf.ExtKeyUsage; len(usage) > 0 && !slices.Contains(usage, x509.ExtKeyUsageClientAuth) && !slices.Contains(usage, x509.ExtKeyUsageAny) {
		return nil, fmt.Errorf("client certificate %s: it is not for TLS clients, brokers would refuse it; sign one whose extended key usage has clientAuth", files.Cert)
	}
	return &pair, nil
}

// decodePEM returns the blocks of a file, all of them: pem.Decode skips what it cannot
// read, the half of a block in the middle of a rotation, say.
func decodePEM(content []byte) ([]*pem.Block, error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, errors.New("it is empty")
	}
	var blocks []*pem.Block
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, block)
	}
	switch begun := bytes.Count(content, []byte("-----BEGIN ")); {
	case begun == 0:
		return nil, errors.New("it is not PEM, which has lines like -----BEGIN CERTIFICATE-----; convert it (from a Java keystore with keytool -exportcert -rfc, from PKCS #12 with openssl pkcs12)")
	case len(blocks) < begun:
		return nil, fmt.Errorf("%d of its %d PEM blocks cannot be read; was it cut off?", begun-len(blocks), begun)
	}
	return blocks, nil
}

// checkExpiry refuses what no broker accepts any more. One that is not valid yet is
// left to the other side, whose clock may be ahead of ours.
func checkExpiry(certificate *x509.Certificate) error {
	if now := time.Now(); now.After(certificate.NotAfter) {
		return fmt.Errorf("the certificate of %q expired %v ago, on %s; replace the file",
			certificate.Subject, now.Sub(certificate.NotAfter).Round(time.Second), certificate.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func checkSystemRoots() error {
	if roots, err := x509.SystemCertPool(); err == nil && !roots.Equal(x509.NewCertPool()) {
		return nil
	}
	return errors.New("no CA is named, and the operating system has no root certificates: install its package ca-certificates, name a CA file, or import golang.org/x/crypto/x509roots/fallback")
}
