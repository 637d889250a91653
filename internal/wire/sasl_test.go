package wire

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/pbkdf2"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xdg-go/scram"
)

// canary is what must not be seen in any error.
const canary = "canary-s3cr3t"

func fixed(user, password string) Credentials {
	return func(context.Context) (string, string, error) { return user, password, nil }
}

func fixedToken(token string, extensions map[string]string) Token {
	return func(context.Context) (string, map[string]string, error) { return token, extensions, nil }
}

func TestPlain(t *testing.T) {
	m := Plain(fixed("älice", "a,b=c d"))
	assert.Equal(t, "PLAIN", m.Name())
	x, err := m.Start(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "\x00älice\x00a,b=c d", string(x.First()))
	answer, done, err := x.Next(nil)
	require.NoError(t, err)
	assert.True(t, done)
	assert.Empty(t, answer)
}

// The exchange of RFC 7677, section 3.
func TestScramVector(t *testing.T) {
	client, err := scram.SHA256.NewClientUnprepped("user", "pencil", "")
	require.NoError(t, err)
	x, err := beginScram(client.WithNonceGenerator(func() string { return "rOprNGfwEbeRWgbNEkqO" }))
	require.NoError(t, err)
	assert.Equal(t, "n,,n=user,r=rOprNGfwEbeRWgbNEkqO", string(x.First()))

	answer, done, err := x.Next([]byte("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"))
	require.NoError(t, err)
	assert.False(t, done)
	assert.Equal(t, "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", string(answer))

	answer, done, err = x.Next([]byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="))
	require.NoError(t, err)
	assert.True(t, done)
	assert.Empty(t, answer)

	_, done, err = x.Next(nil)
	require.Error(t, err, "it was done")
	assert.False(t, done)
}

// scramBroker is the other side, by the formulas of RFC 5802 and, like Kafka, without
// SASLprep.
type scramBroker struct {
	hash           crypto.Hash
	user, password string
	iterations     int
	corruptFinal   bool
	auth           string
}

func (b *scramBroker) mac(key []byte, s string) []byte {
	h := hmac.New(b.hash.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

func (b *scramBroker) first(t *testing.T, clientFirst string) string {
	t.Helper()
	bare, ok := strings.CutPrefix(clientFirst, "n,,")
	require.True(t, ok, clientFirst)
	user, nonce, ok := strings.Cut(strings.TrimPrefix(bare, "n="), ",r=")
	require.True(t, ok, clientFirst)
	require.Equal(t, strings.NewReplacer("=", "=3D", ",", "=2C").Replace(b.user), user)
	first := fmt.Sprintf("r=%sbroker,s=%s,i=%d", nonce, base64.StdEncoding.EncodeToString([]byte("salt")), b.iterations)
	b.auth = bare + "," + first
	return first
}

func (b *scramBroker) final(t *testing.T, clientFinal string) string {
	t.Helper()
	withoutProof, proof, ok := strings.Cut(clientFinal, ",p=")
	require.True(t, ok, clientFinal)
	b.auth += "," + withoutProof
	salted, err := pbkdf2.Key(b.hash.New, b.password, []byte("salt"), b.iterations, b.hash.Size())
	require.NoError(t, err)
	clientKey := b.mac(salted, "Client Key")
	stored := b.hash.New()
	stored.Write(clientKey)
	want := b.mac(stored.Sum(nil), b.auth)
	for i := range want {
		want[i] ^= clientKey[i]
	}
	got, err := base64.StdEncoding.DecodeString(proof)
	require.NoError(t, err)
	if !hmac.Equal(want, got) {
		return "e=invalid-proof"
	}
	signature := b.mac(b.mac(salted, "Server Key"), b.auth)
	if b.corruptFinal {
		signature[0] ^= 1
	}
	return "v=" + base64.StdEncoding.EncodeToString(signature)
}

func TestScram(t *testing.T) {
	names := map[crypto.Hash]string{crypto.SHA256: "SCRAM-SHA-256", crypto.SHA512: "SCRAM-SHA-512"}
	tests := []struct {
		name   string
		broker scramBroker
		asked  string // for the password that is presented; empty: the broker's
		says   string // by Next, in the end; empty: it goes through
	}{
		{name: "right", broker: scramBroker{iterations: 4096}},
		{name: "many iterations", broker: scramBroker{iterations: 16384}},
		{name: "user with comma and equals sign", broker: scramBroker{user: "a,b=c", iterations: 4096}},
		{name: "password that SASLprep would change", broker: scramBroker{password: "ﬁ\u00a0\u00ad", iterations: 4096}},
		{name: "password that SASLprep would refuse", broker: scramBroker{password: "\u0007א1", iterations: 4096}},
		{name: "wrong password", broker: scramBroker{iterations: 4096}, asked: canary, says: "the broker refuses: invalid-proof"},
		{name: "broker does not know the password", broker: scramBroker{corruptFinal: true, iterations: 4096}, says: "must not be trusted"},
		{name: "few iterations", broker: scramBroker{iterations: 4095}, says: "too few iterations"},
		{name: "too many iterations", broker: scramBroker{iterations: maxIterations + 1}, says: "demands 1048577 SCRAM iterations"},
	}
	for hash, name := range names {
		for _, tt := range tests {
			t.Run(name+" "+tt.name, func(t *testing.T) {
				b := tt.broker
				b.hash = hash
				if b.user == "" {
					b.user = "alice"
				}
				if b.password == "" {
					b.password = "alice-secret"
				}
				if tt.asked == "" {
					tt.asked = b.password
				}
				m := Scram(hash, fixed(b.user, tt.asked))
				require.Equal(t, name, m.Name())
				x, err := m.Start(t.Context())
				require.NoError(t, err)
				challenge := b.first(t, string(x.First()))
				for {
					answer, done, err := x.Next([]byte(challenge))
					if err != nil {
						require.NotEmpty(t, tt.says, "%v", err)
						assert.ErrorContains(t, err, tt.says)
						assert.NotContains(t, err.Error(), canary)
						assert.False(t, done)
						assert.Empty(t, answer)
						return
					}
					if done {
						assert.Empty(t, tt.says)
						assert.Empty(t, answer)
						return
					}
					challenge = b.final(t, string(answer))
				}
			})
		}
	}
}

// What a broker that is none may say.
func TestScramRubbish(t *testing.T) {
	tests := map[string][]string{
		"nothing":             {""},
		"no fields":           {"hello"},
		"another's nonce":     {"r=abc,s=c2FsdA==,i=4096"},
		"salt is no base64":   {"r=NONCEx,s=%,i=4096"},
		"iterations negative": {"r=NONCEx,s=c2FsdA==,i=-5"},
		"iterations overflow": {"r=NONCEx,s=c2FsdA==,i=99999999999999999999"},
		"iterations missing":  {"r=NONCEx,s=c2FsdA=="},
		"extension":           {"m=x,r=NONCEx,s=c2FsdA==,i=4096"},
		"done at once":        {"v=AAAA"},
		"refused at once":     {"e=unknown-user"},
		"no signature":        {"r=NONCEx,s=c2FsdA==,i=4096", ""},
		"empty signature":     {"r=NONCEx,s=c2FsdA==,i=4096", "v="},
		"empty refusal":       {"r=NONCEx,s=c2FsdA==,i=4096", "e="},
		"the same again":      {"r=NONCEx,s=c2FsdA==,i=4096", "r=NONCEx,s=c2FsdA==,i=4096"},
		"a bell and a book":   {"e=" + "\a\n" + strings.Repeat("x", 100000)},
	}
	for name, says := range tests {
		t.Run(name, func(t *testing.T) {
			x, err := Scram(crypto.SHA256, fixed("alice", canary)).Start(t.Context())
			require.NoError(t, err)
			_, nonce, _ := strings.Cut(string(x.First()), ",r=")
			for i, challenge := range says {
				_, done, err := x.Next([]byte(strings.ReplaceAll(challenge, "NONCE", nonce)))
				assert.False(t, done)
				if i < len(says)-1 {
					require.NoError(t, err)
					continue
				}
				require.Error(t, err)
				assert.NotContains(t, err.Error(), canary)
				assert.Less(t, len(err.Error()), 500)
				assert.NotContains(t, err.Error(), "\n")
			}
		})
	}
}

func FuzzScram(f *testing.F) {
	f.Add("r=NONCEx,s=c2FsdA==,i=4096", "v=AAAA")
	f.Add("e=other-error", "")
	f.Fuzz(func(t *testing.T, one, two string) {
		x, err := Scram(crypto.SHA512, fixed("alice", canary)).Start(t.Context())
		require.NoError(t, err)
		_, nonce, _ := strings.Cut(string(x.First()), ",r=")
		for _, challenge := range []string{one, two} {
			if iterations(challenge) > 1<<14 {
				return // computed, and slow
			}
			_, done, err := x.Next([]byte(strings.ReplaceAll(challenge, "NONCE", nonce)))
			require.False(t, done, "nobody knows the password")
			if err != nil {
				return
			}
		}
	})
}

func TestOAuthBearer(t *testing.T) {
	tests := []struct {
		name       string
		token      string
		extensions map[string]string
		want       string
	}{
		{"token", "abc.def-_~+/=", nil, "n,,|auth=Bearer abc.def-_~+/=||"},
		{"no extensions", "t", map[string]string{}, "n,,|auth=Bearer t||"},
		{"one", "t", map[string]string{"logicalCluster": "lkc-1"}, "n,,|auth=Bearer t|logicalCluster=lkc-1||"},
		{"two, in order", "t", map[string]string{"b": "x y", "a": "1=2"}, "n,,|auth=Bearer t|a=1=2|b=x y||"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := OAuthBearer(fixedToken(tt.token, tt.extensions))
			assert.Equal(t, "OAUTHBEARER", m.Name())
			x, err := m.Start(t.Context())
			require.NoError(t, err)
			assert.Equal(t, strings.ReplaceAll(tt.want, "|", "\x01"), string(x.First()))
			answer, done, err := x.Next(nil)
			require.NoError(t, err)
			assert.True(t, done)
			assert.Empty(t, answer)
		})
	}
}

// A refusal is answered, so that the broker can end the exchange with its error. One
// that goes on as if nothing were is not believed.
func TestOAuthBearerRefused(t *testing.T) {
	for _, after := range []string{"", `{"status":"again"}`} {
		x, err := OAuthBearer(fixedToken(canary, nil)).Start(t.Context())
		require.NoError(t, err)
		answer, done, err := x.Next([]byte(`{"status":"invalid_token", "echo":"` + canary + "\n\"}"))
		require.NoError(t, err)
		assert.False(t, done)
		assert.Equal(t, []byte{1}, answer)
		answer, done, err = x.Next([]byte(after))
		require.EqualError(t, err, `the broker refuses the token: {"status":"invalid_token", "echo":"… "}`)
		assert.False(t, done)
		assert.Empty(t, answer)
	}
}

// each starts every mechanism that asks a function, which f stands for.
func each(t *testing.T, f func(ctx context.Context) (string, error), body func(t *testing.T, what string, m Mechanism)) {
	t.Helper()
	credentials := func(ctx context.Context) (string, string, error) { s, err := f(ctx); return s, s, err }
	token := func(ctx context.Context) (string, map[string]string, error) { s, err := f(ctx); return s, nil, err }
	t.Run("PLAIN", func(t *testing.T) { body(t, "credentials function", Plain(credentials)) })
	t.Run("SCRAM", func(t *testing.T) { body(t, "credentials function", Scram(crypto.SHA256, credentials)) })
	t.Run("OAUTHBEARER", func(t *testing.T) { body(t, "token function", OAuthBearer(token)) })
}

func TestFunctionIsAskedEachTime(t *testing.T) {
	var n atomic.Int32
	each(t, func(context.Context) (string, error) { return fmt.Sprintf("secret-%d", n.Add(1)), nil }, func(t *testing.T, _ string, m Mechanism) {
		one, err := m.Start(t.Context())
		require.NoError(t, err)
		two, err := m.Start(t.Context())
		require.NoError(t, err)
		assert.NotEqual(t, one.First(), two.First())
	})
	assert.EqualValues(t, 6, n.Load())
}

func TestFunctionFails(t *testing.T) {
	down := errors.New("vault is sealed")
	each(t, func(context.Context) (string, error) { return canary, down }, func(t *testing.T, what string, m Mechanism) {
		x, err := m.Start(t.Context())
		assert.Nil(t, x)
		require.ErrorIs(t, err, down)
		assert.EqualError(t, err, "the "+what+" failed: vault is sealed")
	})
}

func TestFunctionReturnsNothing(t *testing.T) {
	each(t, func(context.Context) (string, error) { return "", nil }, func(t *testing.T, what string, m Mechanism) {
		x, err := m.Start(t.Context())
		assert.Nil(t, x)
		require.ErrorContains(t, err, "what the "+what+" returned cannot be used: the ")
		assert.ErrorContains(t, err, "is empty")
	})
}

// A function that ignores its context holds up a connection no longer than that may
// take, and however often it is asked, few calls are left waiting.
func TestFunctionBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls, returned atomic.Int32
		m := OAuthBearer(func(context.Context) (string, map[string]string, error) {
			calls.Add(1)
			<-release
			returned.Add(1)
			return "late", nil, nil
		})
		for i := range 3 * atOnce {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			began := time.Now()
			_, err := m.Start(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			assert.Equal(t, 10*time.Second, time.Since(began))
			want := "the token function has not returned: context deadline exceeded"
			if i >= atOnce {
				want = "the token function is at work for 8 other connections and has not returned: context deadline exceeded"
			}
			assert.EqualError(t, err, want)
		}
		assert.EqualValues(t, atOnce, calls.Load())
		close(release)
		synctest.Wait()
		assert.EqualValues(t, atOnce, returned.Load())
		_, err := m.Start(t.Context())
		require.NoError(t, err, "it has come back")
	})
}

func TestFunctionIsToldToStop(t *testing.T) {
	each(t, func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }, func(t *testing.T, what string, m Mechanism) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(net.ErrClosed)
		_, err := m.Start(ctx)
		require.Error(t, err)
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		m := Plain(func(context.Context) (string, string, error) { <-t.Context().Done(); return "", "", nil })
		time.AfterFunc(time.Second, func() { cancel(net.ErrClosed) })
		_, err := m.Start(ctx)
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestStartedByManyAtOnce(t *testing.T) {
	each(t, func(context.Context) (string, error) { return "x", nil }, func(t *testing.T, _ string, m Mechanism) {
		var wg sync.WaitGroup
		for range 4 * atOnce {
			wg.Go(func() {
				_, err := m.Start(t.Context())
				assert.NoError(t, err)
			})
		}
		wg.Wait()
	})
}

func TestCheckCredentials(t *testing.T) {
	tests := []struct{ name, user, password, says string }{
		{"good", "alice", canary, ""},
		{"spaces inside and around", " a b ", " " + canary + " ", ""},
		{"no user", "", canary, "the user is empty"},
		{"no password", "alice", "", "the password is empty"},
		{"line break", "alice", canary + "\n", "the password ends with a line break"},
		{"carriage return", "alice", canary + "\r", "the password ends with a line break"},
		{"user with line break", "alice\n", canary, "the user ends with a line break"},
		{"zero", "alice", canary + "\x00" + canary, "the password contains a zero byte"},
		{"user with zero", "alice\x00bob", canary, "the user contains a zero byte"},
		{"not UTF-8", "alice", canary + "\xff", "the password is not UTF-8"},
		{"user not UTF-8", "\xff", canary, "the user is not UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckCredentials(tt.user, tt.password)
			_, started := Plain(fixed(tt.user, tt.password)).Start(t.Context())
			if tt.says == "" {
				require.NoError(t, err)
				require.NoError(t, started)
				return
			}
			require.ErrorContains(t, err, tt.says)
			require.ErrorContains(t, started, tt.says)
			assert.NotContains(t, err.Error(), canary)
		})
	}
}

func TestCheckToken(t *testing.T) {
	tests := []struct {
		name, token string
		extensions  map[string]string
		says        string
	}{
		{"empty", "", nil, "the token is empty"},
		{"line break", canary + "\n", nil, "white space"},
		{"space", canary + " x", nil, "white space"},
		{"separator", canary + "\x01", nil, "white space"},
		{"not ASCII", canary + "é", nil, "not ASCII"},
		{"reserved extension", canary, map[string]string{"auth": canary}, `"auth"`},
		{"extension name", canary, map[string]string{"a-b": canary}, `"a-b" is not made of letters`},
		{"no extension name", canary, map[string]string{"": canary}, `"" is not made of letters`},
		{"extension without value", canary, map[string]string{"a": ""}, `"a" is empty`},
		{"extension with separator", canary, map[string]string{"a": canary + "\x01b=c"}, `"a" is empty, or has characters`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := OAuthBearer(fixedToken(tt.token, tt.extensions)).Start(t.Context())
			require.ErrorContains(t, err, tt.says)
			assert.NotContains(t, err.Error(), canary)
		})
	}
}
