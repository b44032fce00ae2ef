package batchtest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

func TestAKeyExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{
			Turnaround: 2 * time.Hour,
			Keys: map[string]batchtest.Key{
				"token-1": {Account: "us", Until: time.Now().Add(time.Hour)},
				"token-2": {Account: "us"},
			},
		})
		a.key = "token-1"
		id := a.create(chatLines(1))["id"].(string)
		for _, step := range []struct {
			wait   time.Duration
			key    string
			status int
		}{
			{time.Hour - 1, "token-1", 200},
			{1, "token-1", 401},
			{0, "token-2", 200},
			{0, "token-3", 401},
		} {
			time.Sleep(step.wait)
			a.key = step.key
			if got := a.get("/batches/" + id); got.status != step.status {
				t.Errorf("%s: %d, want %d", step.key, got.status, step.status)
			}
		}
		if b := a.server.Batches()[0]; b.APIKey != "token-1" || b.Account != "us" {
			t.Errorf("batch of key %q, account %q; want token-1, us", b.APIKey, b.Account)
		}
	})
}

func TestKeysOfOneAccountShareFilesAndBatches(t *testing.T) {
	a := newAPI(t, batchtest.Options{Keys: map[string]batchtest.Key{"a1": {Account: "a"}, "a2": {Account: "a"}, "b": {}}})
	a.key = "a1"
	b := a.create(chatLines(1))
	for key, want := range map[string]int{"a1": 200, "a2": 200, "b": 404} {
		a.key = key
		for _, path := range []string{"/batches/" + b["id"].(string), "/files/" + b["input_file_id"].(string)} {
			if got := a.get(path).status; got != want {
				t.Errorf("%s with key %s: %d, want %d", path, key, got, want)
			}
		}
	}
	a.key = "a2"
	if got := a.ids("/batches"); len(got) != 1 {
		t.Errorf("the second key lists %v, want the batch of the first key", got)
	}
	if got := a.post("/batches", createBody(b["input_file_id"].(string), chat, "24h")); got.status != 200 {
		t.Errorf("create with the file of the first key: %d", got.status)
	}
}

func TestAddAndRevokeKeys(t *testing.T) {
	a := newAPI(t, batchtest.Options{APIKeys: []string{"old"}})
	a.key = "old"
	id := a.create(chatLines(1))["id"].(string)
	a.server.AddKey("new", batchtest.Key{Account: "old"})
	a.server.RevokeKey("old")
	for key, want := range map[string]int{"old": 401, "new": 200, "other": 401} {
		a.key = key
		if got := a.get("/batches/" + id).status; got != want {
			t.Errorf("%s: %d, want %d", key, got, want)
		}
	}
	open := newAPI(t, batchtest.Options{})
	open.server.RevokeKey("sk-test")
	if got := open.get("/models").status; got != 401 {
		t.Errorf("a revoked key of a server that lets every key in: %d, want 401", got)
	}
	open.server.AddKey("sk-test", batchtest.Key{})
	if got := open.get("/models").status; got != 200 {
		t.Errorf("the key added again: %d, want 200", got)
	}
}
