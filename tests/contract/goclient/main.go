// A client of the HTTP API with Go's net/http, as gvproxy's own clients are: one http.Client whose transport dials a
// unix socket or a TCP port.
//
//	goclient NETWORK ADDRESS    as of net.Dial: "unix /run/api.sock", "tcp 127.0.0.1:80"; "names -" resolves names
//
// Each line of standard input is a question in JSON, each line of standard output its answer.
package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"time"
)

const patience = 20 * time.Second

type question struct {
	Method string
	URL    string
	Body   string
	// The body is sent in chunks, for its length is not known.
	Chunked bool
	// The same request so many times at once; that answers differ is an error.
	Parallel int
	// Not by net/http's client: the request is written to a connection, then Send, and Read bytes are awaited.
	Raw  bool
	Send []byte
	Read int
}

type answer struct {
	Status int
	Body   string
	Type   string
	// Over a connection that had served a request before.
	Reused bool
	Bytes  []byte
	Error  string
}

type caller struct {
	dial   func(context.Context, string, string) (net.Conn, error)
	client *http.Client
}

func newCaller(network, address string) *caller {
	dialer := &net.Dialer{Timeout: patience}
	dial := dialer.DialContext
	if network != "names" {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		}
	}
	return &caller{dial, &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: patience}}
}

func (c *caller) ask(q question) answer {
	if q.Raw {
		return c.takeOver(q)
	}
	others := make(chan answer)
	for i := 1; i < q.Parallel; i++ {
		go func() { others <- c.request(q) }()
	}
	a := c.request(q)
	for i := 1; i < q.Parallel; i++ {
		if other := <-others; other.Status != a.Status || other.Body != a.Body {
			a.Error += other.Error + " another answer: " + other.Body
		}
	}
	return a
}

func (c *caller) request(q question) (a answer) {
	var body io.Reader
	if q.Body != "" {
		body = strings.NewReader(q.Body)
	}
	if q.Chunked {
		body = io.MultiReader(body) // of a type whose length net/http cannot know
	}
	request, err := http.NewRequest(q.Method, q.URL, body)
	if err != nil {
		return answer{Error: err.Error()}
	}
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { a.Reused = got.Reused }}
	response, err := c.client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		a.Error = err.Error()
		return a
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		a.Error = err.Error()
	}
	a.Status, a.Body, a.Type = response.StatusCode, string(text), response.Header.Get("Content-Type")
	return a
}

// Writes the request as net/http would, to a connection that is then the caller's.
func (c *caller) takeOver(q question) (a answer) {
	connection, err := c.dial(context.Background(), "tcp", "")
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer connection.Close()
	request, err := http.NewRequest(q.Method, q.URL, nil)
	if err != nil {
		return answer{Error: err.Error()}
	}
	connection.SetDeadline(time.Now().Add(patience))
	if err = request.Write(connection); err == nil {
		_, err = connection.Write(q.Send)
	}
	if err == nil {
		a.Bytes = make([]byte, q.Read)
		_, err = io.ReadFull(connection, a.Bytes)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func main() {
	caller := newCaller(os.Args[1], os.Args[2])
	questions, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q question
		if err := questions.Decode(&q); err == io.EOF {
			return
		} else if err != nil {
			panic(err)
		}
		if err := answers.Encode(caller.ask(q)); err != nil {
			panic(err)
		}
	}
}
