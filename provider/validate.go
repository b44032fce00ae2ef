package provider

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/autobatcher/autobatcher/internal/retry"
)

// Validate returns nil for a usable profile. Otherwise the error names the first
// wrong field, the value and the broken bound. A profile with a Refusal is usable
// and needs only a Name.
func (p Profile) Validate() error {
	if p.Name == "" {
		return errors.New("provider: Name is empty; start from a known profile such as provider.Generic()")
	}
	if p.Refusal != "" {
		return nil
	}
	checks := []func() error{
		p.checkHosts, p.checkHeaders, p.checkWords, p.checkPaths, p.checkLimits, p.checkDurations, p.checkFlex, p.checkPairs, p.checkLineMembers, p.checkDefaultWindow,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return fmt.Errorf("provider %q: %w", p.Name, err)
		}
	}
	return nil
}

func (p Profile) checkHosts() error {
	for _, h := range p.Hosts {
		if h == "" || h != hostname(h) {
			return fmt.Errorf("want Hosts in lower case and without a port, not %q", h)
		}
	}
	return nil
}

func (p Profile) checkHeaders() error {
	for _, name := range p.AccountHeaders {
		if !namesHeader(name) {
			return fmt.Errorf("want AccountHeaders that are header names, such as \"X-Org-Id\", not %q", name)
		}
	}
	return nil
}

func (p Profile) checkWords() error {
	for _, f := range []struct{ field, value string }{
		{"AuthHeader", p.AuthHeader},
		{"UploadPath", p.UploadPath},
		{"Purpose", p.Purpose},
	} {
		if f.value == "" || strings.HasPrefix(f.value, "/") {
			return fmt.Errorf("%s is %q; want it not empty and without a leading slash", f.field, f.value)
		}
	}
	return nil
}

func (p Profile) checkPaths() error {
	for _, f := range []struct{ field, value string }{
		{"LinePrefix", p.LinePrefix},
		{"EndpointPrefix", p.EndpointPrefix},
	} {
		if f.value != "" && !isPath(f.value) {
			return fmt.Errorf("%s is %q; want it empty, or with a leading slash and no trailing one", f.field, f.value)
		}
	}
	for _, e := range slices.Concat(p.Endpoints, p.FlexEndpoints) {
		if !isPath(e) {
			return fmt.Errorf("want Endpoints and FlexEndpoints with a leading slash and no trailing one, as in \"/embeddings\", not %q", e)
		}
	}
	if c := p.BasePathCut; c != "" && (len(c) < 3 || !isPath(strings.TrimSuffix(c, "/")) || !strings.HasSuffix(c, "/")) {
		return fmt.Errorf("BasePathCut is %q; want it empty, or between slashes, as in \"/deployments/\"", c)
	}
	return nil
}

func isPath(s string) bool {
	return len(s) > 1 && strings.HasPrefix(s, "/") && !strings.HasSuffix(s, "/")
}

func (p Profile) checkLimits() error {
	for _, f := range []struct {
		field string
		value int64
	}{
		{"MaxLines", int64(p.MaxLines)},
		{"MaxBytes", p.MaxBytes},
		{"MaxLineBytes", p.MaxLineBytes},
		{"MaxInputs", int64(p.MaxInputs)},
		{"MaxMetadata", int64(p.MaxMetadata)},
		{"MaxMetadataKey", int64(p.MaxMetadataKey)},
		{"MaxMetadataValue", int64(p.MaxMetadataValue)},
		{"CreationsPerHour", int64(p.CreationsPerHour)},
	} {
		if f.value < 0 {
			return fmt.Errorf("%s is %d; want 0 (no limit) or more", f.field, f.value)
		}
	}
	if p.MaxBytes > 0 && p.MaxLineBytes > p.MaxBytes {
		return fmt.Errorf("MaxLineBytes is %d; want at most MaxBytes, %d", p.MaxLineBytes, p.MaxBytes)
	}
	return nil
}

func (p Profile) checkDurations() error {
	switch {
	case p.FlexTimeout < 0:
		return fmt.Errorf("FlexTimeout is %s; want 0 or more", p.FlexTimeout)
	case p.MinPoll < 0:
		return fmt.Errorf("MinPoll is %s; want 0 or more", p.MinPoll)
	case p.MinWindow < 0 || p.MinWindow > p.MaxWindow:
		return fmt.Errorf("MinWindow is %s; want 0 to MaxWindow, %s", p.MinWindow, p.MaxWindow)
	case p.FileExpiryMin < 0 || p.FileExpiryMin > p.FileExpiryMax:
		return fmt.Errorf("FileExpiryMin is %s; want 0 to FileExpiryMax, %s", p.FileExpiryMin, p.FileExpiryMax)
	}
	return nil
}

func (p Profile) checkFlex() error {
	if len(p.FlexEndpoints) > 0 && (p.FlexTier == "" || p.FlexTimeout == 0 || len(p.FlexRefusals) == 0) {
		return errors.New("FlexEndpoints are set; want FlexTier, FlexTimeout and FlexRefusals, too")
	}
	for _, status := range p.FlexRefusals {
		if status < 400 || status > 599 || retry.MayHaveRun(status) {
			return fmt.Errorf("want FlexRefusals from 400 to 599 and not 408, 502, 504, 520, 522 or 524, after which a call may be paid for, not %d", status)
		}
	}
	return nil
}

// checkPairs checks each field that requires another field.
func (p Profile) checkPairs() error {
	switch {
	case p.SinglePrice != "" && (p.Endpoints == nil || len(p.Endpoints) > 0 || p.FlexTimeout == 0):
		return errors.New("SinglePrice is set; want Endpoints empty and not nil, and FlexTimeout")
	case p.OutputExpiry && p.FileExpiryMax == 0:
		return errors.New("OutputExpiry is set and FileExpiryMax is 0; want the longest expiry accepted")
	case p.UploadModelField != "" && !p.OneModel:
		return errors.New("UploadModelField is set and OneModel is not; want files of one model")
	}
	return nil
}

func (p Profile) checkLineMembers() error {
	if p.LineMembers == nil {
		return nil
	}
	if !p.OneModel || !p.OneEndpoint {
		return errors.New("LineMembers are set; want OneModel and OneEndpoint, too")
	}
	for _, suffix := range p.endpoints() {
		if names := p.LineMembers[suffix]; len(names) == 0 || slices.Contains(names, "model") {
			return fmt.Errorf("LineMembers of %q are %q; want the members that stand on a line, without \"model\"", suffix, names)
		}
	}
	return nil
}

func (p Profile) checkDefaultWindow() error {
	if err := p.CheckWindow(p.DefaultWindow); err != nil {
		return fmt.Errorf("DefaultWindow: %w", err)
	}
	return nil
}

// CheckMetadata returns nil for metadata that a batch may carry. Otherwise the
// error names the pair and the broken bound.
func (p Profile) CheckMetadata(metadata map[string]string) error {
	if p.MaxMetadata > 0 && len(metadata) > p.MaxMetadata {
		return fmt.Errorf("there are %d pairs of metadata; %s takes %d", len(metadata), p.Name, p.MaxMetadata)
	}
	for key, value := range metadata {
		switch {
		case p.MaxMetadataKey > 0 && utf8.RuneCountInString(key) > p.MaxMetadataKey:
			return fmt.Errorf("metadata key %.80q has over %d characters, which is all that %s takes", key, p.MaxMetadataKey, p.Name)
		case p.MaxMetadataValue > 0 && utf8.RuneCountInString(value) > p.MaxMetadataValue:
			return fmt.Errorf("the metadata value of %q has over %d characters, which is all that %s takes", key, p.MaxMetadataValue, p.Name)
		}
	}
	return nil
}
