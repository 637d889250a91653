// Package certs makes certificates for tests: an [Authority] and what it has
// signed, as values for a server in Go, as PEM files for a client, and as the
// stores that a broker in Java reads. Nothing but Go is needed for it.
package certs

// Making them. What they are written to is in files.go.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// An Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A Template says what certificate to issue.
type Template struct {
	// Name is the common name of the subject, and the only part of it: to a broker
	// that asks for client certificates, the client is User:CN=<Name>.
	Name string

	// Hosts are the DNS names and IP addresses that a server may be reached by.
	Hosts []string

	// The time in which it is valid. Zero: from an hour ago until tomorrow.
	NotBefore, NotAfter time.Time
}

// A Certificate is one that an [Authority] has issued, with its private key.
type Certificate struct {
	pair tls.Certificate
	ca   *x509.Certificate
}

// NewAuthority makes an authority whose own certificate has that common name.
func NewAuthority(name string) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	tmpl := Template{Name: name}.x509()
	tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
	cert, err := sign(tmpl, tmpl, key, key)
	if err != nil {
		return nil, err
	}
	return &Authority{cert, key}, nil
}

// Issue signs a certificate for servers and clients.
func (a *Authority) Issue(t Template) (Certificate, error) {
	key, err := newKey()
	if err != nil {
		return Certificate{}, err
	}
	tmpl := t.x509()
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaf, err := sign(tmpl, a.cert, key, a.key)
	if err != nil {
		return Certificate{}, err
	}
	return Certificate{tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, a.cert}, nil
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func (t Template) x509() *x509.Certificate {
	now := time.Now()
	c := &x509.Certificate{Subject: pkix.Name{CommonName: t.Name}, NotBefore: t.NotBefore, NotAfter: t.NotAfter, BasicConstraintsValid: true}
	if c.NotBefore.IsZero() {
		c.NotBefore = now.Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = now.Add(24 * time.Hour)
	}
	for _, host := range t.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, host)
		}
	}
	return c
}

func sign(tmpl, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), issuerKey)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", tmpl.Subject, err)
	}
	return x509.ParseCertificate(der)
}

// Pool has this authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return encode("CERTIFICATE", a.cert.Raw) }

// TLS is the certificate as Go wants it.
func (c Certificate) TLS() tls.Certificate { return c.pair }

// Principal is what Kafka calls a client that presents the certificate.
func (c Certificate) Principal() string { return "User:" + c.pair.Leaf.Subject.String() }

// CertPEM is the certificate.
func (c Certificate) CertPEM() []byte { return encode("CERTIFICATE", c.pair.Leaf.Raw) }

// KeyPEM is its private key, in PKCS #8.
func (c Certificate) KeyPEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(c.pair.PrivateKey)
	if err != nil {
		panic(err) // a key that we have made ourselves
	}
	return encode("PRIVATE KEY", der)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
