package kgroup_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/kgroup-go/kgroup"
)

// An mskIdentity makes tokens for Amazon MSK with IAM (port 9098 or 9198, TLS with the
// system's CAs). Such a token is a signed URL, made without asking anybody.
type mskIdentity struct {
	region string

	// credentials are asked for each token. Here they come from the environment. For
	// roles of EC2, ECS and EKS take what the AWS SDK finds: its aws.Config.Credentials
	// has all three in what Retrieve returns.
	credentials func(ctx context.Context) (keyID, secretKey, sessionToken string, err error)

	now func() time.Time
}

func (m mskIdentity) token(ctx context.Context) (string, map[string]string, error) {
	keyID, secretKey, sessionToken, err := m.credentials(ctx)
	if err != nil {
		return "", nil, err
	}
	return base64.RawURLEncoding.EncodeToString([]byte(m.sign(keyID, secretKey, sessionToken))), nil, nil
}

// sign is AWS Signature Version 4, in the query of a URL.
func (m mskIdentity) sign(keyID, secretKey, sessionToken string) string {
	const service, algorithm = "kafka-cluster", "AWS4-HMAC-SHA256"
	host := "kafka." + m.region + ".amazonaws.com"
	stamp := m.now().UTC().Format("20060102T150405Z")
	day := stamp[:8]
	scope := strings.Join([]string{day, m.region, service, "aws4_request"}, "/")
	query := url.Values{
		"Action":              {"kafka-cluster:Connect"},
		"X-Amz-Algorithm":     {algorithm},
		"X-Amz-Credential":    {keyID + "/" + scope},
		"X-Amz-Date":          {stamp},
		"X-Amz-Expires":       {"900"}, // seconds
		"X-Amz-SignedHeaders": {"host"},
	}
	if sessionToken != "" {
		query.Set("X-Amz-Security-Token", sessionToken)
	}
	signed := strings.ReplaceAll(query.Encode(), "+", "%20") // sorted by name
	request := strings.Join([]string{"GET", "/", signed, "host:" + host, "", "host", hexSum("")}, "\n")
	text := strings.Join([]string{algorithm, stamp, scope, hexSum(request)}, "\n")
	key := []byte("AWS4" + secretKey)
	for _, part := range []string{day, m.region, service, "aws4_request", text} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return "https://" + host + "/?" + signed + "&X-Amz-Signature=" + hex.EncodeToString(key) + "&User-Agent=kgroup"
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func awsEnvironment(context.Context) (keyID, secretKey, sessionToken string, err error) {
	keyID, secretKey = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
	if keyID == "" || secretKey == "" {
		return "", "", "", errors.New("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")
	}
	return keyID, secretKey, os.Getenv("AWS_SESSION_TOKEN"), nil
}

// Amazon MSK with IAM: a token source that needs the standard library only.
func ExampleOAuthBearer_amazonMSK() {
	identity := mskIdentity{region: "eu-central-1", credentials: awsEnvironment, now: time.Now}
	tls, err := kgroup.LoadTLS(kgroup.TLSFiles{})
	if err != nil {
		fmt.Println(err)
		return
	}
	config := kgroup.Config{
		Brokers: []string{"b-1.demo.abcdef.c2.kafka.eu-central-1.amazonaws.com:9098"},
		TLS:     tls,
		Auth:    kgroup.OAuthBearer(identity.token),
		// Group, Topics ...
	}
	fmt.Println(config.Auth)

	// The same moment and the same key make the same token, as the AWS SDK makes it.
	identity.now = func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }
	identity.credentials = func(context.Context) (keyID, secretKey, sessionToken string, err error) {
		return "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEXAMPLE/token+with=signs", nil
	}
	token, _, err := identity.token(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	fmt.Println(strings.ReplaceAll(string(text), "&", "\n&"), err)
	// Output:
	// OAUTHBEARER
	// https://kafka.eu-central-1.amazonaws.com/?Action=kafka-cluster%3AConnect
	// &X-Amz-Algorithm=AWS4-HMAC-SHA256
	// &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261123%2Feu-central-1%2Fkafka-cluster%2Faws4_request
	// &X-Amz-Date=20261123T120000Z
	// &X-Amz-Expires=900
	// &X-Amz-Security-Token=FwoGZXIvYXdzEXAMPLE%2Ftoken%2Bwith%3Dsigns
	// &X-Amz-SignedHeaders=host
	// &X-Amz-Signature=872de4bf32d31e93fccd16335caf7b19d290a15261a1fbe5fa883ecf8f6f0ef4
	// &User-Agent=kgroup <nil>
}
