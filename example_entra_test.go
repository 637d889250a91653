package kgroup_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/kgroup-go/kgroup"
)

// A clientCredentials gets tokens from an OAuth 2.0 server (RFC 6749, section 4.4),
// and keeps each until it is about to expire: kgroup asks at each new connection.
type clientCredentials struct {
	endpoint   string // Entra ID: https://login.microsoftonline.com/<tenant>/oauth2/v2.0/token
	id, secret string
	scope      string // Event Hubs: https://<namespace>.servicebus.windows.net/.default
	client     *http.Client
	mu         sync.Mutex
	kept       string
	keptUntil  time.Time
	reserve    time.Duration
}

func (c *clientCredentials) token(ctx context.Context) (string, map[string]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.keptUntil) {
		return c.kept, nil, nil
	}
	token, lifetime, err := c.fetch(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("token for %s: %w", c.scope, err)
	}
	c.kept, c.keptUntil = token, time.Now().Add(lifetime-c.reserve)
	return token, nil, nil
}

func (c *clientCredentials) fetch(ctx context.Context) (token string, lifetime time.Duration, err error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.id}, "client_secret": {c.secret}, "scope": {c.scope}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := c.client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	var answer struct {
		Token       string `json:"access_token"`
		Seconds     int    `json:"expires_in"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&answer); err != nil {
		return "", 0, fmt.Errorf("%s: %w", response.Status, err)
	}
	if response.StatusCode != http.StatusOK {
		return "", 0, fmt.Errorf("%s: %s: %s", response.Status, answer.Error, answer.Description)
	}
	return answer.Token, time.Duration(answer.Seconds) * time.Second, nil
}

// Azure Event Hubs with an identity of Entra ID. Connections that are made at the same
// time ask for one token only; none waits longer than its ConnectTimeout.
func ExampleOAuthBearer_azureEventHubs() {
	entra := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("client_secret") != "app secret" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret"}`)
			return
		}
		fmt.Println("asked for", r.PostFormValue("scope"))
		_, _ = io.WriteString(w, `{"token_type": "Bearer", "expires_in": 3599, "access_token": "eyJ0eXAi.eyJhdWQi.c2ln"}`)
	}))
	defer entra.Close()

	app := &clientCredentials{
		endpoint: entra.URL,
		id:       "11111111-2222-3333-4444-555555555555",
		secret:   "app secret",
		scope:    "https://billing.servicebus.windows.net/.default",
		client:   entra.Client(),
		reserve:  5 * time.Minute,
	}
	config := kgroup.Config{
		Brokers: []string{"billing.servicebus.windows.net:9093"},
		Auth:    kgroup.OAuthBearer(app.token),
		// TLS: LoadTLS(TLSFiles{}), Group, Topics ...
	}
	fmt.Println(config.Auth)

	for range 2 { // what a connection does
		token, _, err := app.token(context.Background())
		fmt.Println(token, err)
	}
	app.secret, app.keptUntil = "an old one", time.Time{}
	_, _, err := app.token(context.Background())
	fmt.Println(err)
	// Output:
	// OAUTHBEARER
	// asked for https://billing.servicebus.windows.net/.default
	// eyJ0eXAi.eyJhdWQi.c2ln <nil>
	// eyJ0eXAi.eyJhdWQi.c2ln <nil>
	// token for https://billing.servicebus.windows.net/.default: 401 Unauthorized: invalid_client: AADSTS7000215: Invalid client secret
}
