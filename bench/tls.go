//go:build unix

package main

// A broker's certificate, and what a client needs to trust it. How each contender uses
// that is in contender.go.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// secureListener is the name of Kafka's listener with TLS.
const secureListener = "SECURE"

// An identity is a certificate for 127.0.0.1, signed by itself, in a folder of its own.
type identity struct {
	ca          string // file with the certificate
	certificate []byte // PEM
	key         []byte // PEM, PKCS 8
}

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "kgroup bench"}, // Java takes none without
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "kgroup-bench-tls-")
	if err != nil {
		return nil, err
	}
	i := &identity{
		ca:          filepath.Join(folder, "ca.pem"),
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
	return i, os.WriteFile(i.ca, i.certificate, 0o600)
}

func (i *identity) remove() error { return os.RemoveAll(filepath.Dir(i.ca)) }

// config is that of a server in this process.
func (i *identity) config() *tls.Config {
	pair, err := tls.X509KeyPair(i.certificate, i.key)
	if err != nil {
		panic(err) // it was made a moment ago
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

func (i *identity) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(i.certificate)
	return pool
}

// properties are those of a Kafka whose listener shows the certificate.
func (i *identity) properties() map[string]string {
	prefix := "listener.name.secure.ssl.keystore."
	return map[string]string{
		prefix + "type":              "PEM",
		prefix + "certificate.chain": string(i.certificate),
		prefix + "key":               string(i.key),
	}
}

// trusting are the settings of a client that trusts whoever shows a certificate from
// file, as somebody writes them who has no kgroup.
func trusting(file string) (*tls.Config, error) {
	certificate, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: (&identity{certificate: certificate}).pool(), MinVersion: tls.VersionTLS12}, nil
}
