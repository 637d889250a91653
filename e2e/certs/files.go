package certs

// What clients and brokers read. certs.go makes what is in it.

import (
	"crypto/x509"
	"os"
	"path/filepath"

	"software.sslmate.com/src/go-pkcs12"
)

// Files are the paths of PEM files for a client.
type Files struct {
	CA, Cert, Key string
}

// WriteFiles writes ca.pem, cert.pem and key.pem into a folder. What is there is
// replaced, one file after the other and each in one step: whoever reads meanwhile
// finds whole files, of which some may already be the new ones.
func WriteFiles(dir string, ca *Authority, c Certificate) (Files, error) {
	f := Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for _, file := range []struct {
		path string
		text []byte
	}{{f.CA, ca.PEM()}, {f.Cert, c.CertPEM()}, {f.Key, c.KeyPEM()}} {
		if err := Replace(file.path, file.text); err != nil {
			return Files{}, err
		}
	}
	return f, nil
}

// Replace writes a file that only its owner may read, in one step.
func Replace(path string, text []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	if err2 := tmp.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// Stores are PKCS #12: every broker that runs on Java 17 reads that, PEM only those
// since Kafka 2.7. Java 12 and later know this encryption.
var stores = pkcs12.Modern2023

// KeyStore is a store with the certificate, its key and its authority.
func (c Certificate) KeyStore(password string) ([]byte, error) {
	return stores.Encode(c.pair.PrivateKey, c.pair.Leaf, []*x509.Certificate{c.ca}, password)
}

// TrustStore is a store with the certificate of the authority.
func (a *Authority) TrustStore(password string) ([]byte, error) {
	return stores.EncodeTrustStore([]*x509.Certificate{a.cert}, password)
}
