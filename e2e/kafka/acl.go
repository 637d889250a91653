package kafka

// Who may read and write what, on brokers with an authorizer.

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// anonymous is who has not said who it is.
const anonymous = "User:ANONYMOUS"

// RestrictTopic lets none but the given principals read a topic, and returns when
// every broker knows. Principals are Kafka's: User:alice for a SASL user,
// User:CN=billing for a certificate. Without one, everybody may do everything with
// the topic again. Super users always may.
//
// The authorizer must be one that lets everybody do what no ACL mentions, as
// [Security] has it.
func (a *Admin) RestrictTopic(ctx context.Context, topic string, principals ...string) error {
	if err := a.restrict(ctx, kadm.OpRead, kmsg.ACLResourceTypeTopic, topic, principals); err != nil {
		return fmt.Errorf("restrict topic %s to %v: %w", topic, principals, err)
	}
	return nil
}

// RestrictWriters lets none but the given principals write to a topic: see
// [Admin.RestrictTopic]. The others may not read it either, unless there is an ACL that
// says so.
func (a *Admin) RestrictWriters(ctx context.Context, topic string, principals ...string) error {
	if err := a.restrict(ctx, kadm.OpWrite, kmsg.ACLResourceTypeTopic, topic, principals); err != nil {
		return fmt.Errorf("restrict writers of topic %s to %v: %w", topic, principals, err)
	}
	return nil
}

// RestrictGroup lets none but the given principals be members of a group: see
// [Admin.RestrictTopic].
func (a *Admin) RestrictGroup(ctx context.Context, group string, principals ...string) error {
	if err := a.restrict(ctx, kadm.OpRead, kmsg.ACLResourceTypeGroup, group, principals); err != nil {
		return fmt.Errorf("restrict group %s to %v: %w", group, principals, err)
	}
	return nil
}

// restrict makes one the list of those who may do something: the new ones first, lest
// the list be empty meanwhile, which means everybody.
func (a *Admin) restrict(ctx context.Context, op kadm.ACLOperation, kind kmsg.ACLResourceType, name string, principals []string) error {
	before, err := a.allowed(ctx, a.cl, op, kind, name)
	if err != nil {
		return err
	}
	acls := func(principals []string) *kadm.ACLBuilder {
		b := kadm.NewACLs().Allow(principals...).AllowHosts("*").Operations(op).ResourcePatternType(kadm.ACLPatternLiteral)
		if kind == kmsg.ACLResourceTypeTopic {
			return b.Topics(name)
		}
		return b.Groups(name)
	}
	if len(principals) > 0 {
		results, err := a.adm.CreateACLs(ctx, acls(principals))
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil {
				return fmt.Errorf("allow %s: %w", r.Principal, r.Err)
			}
		}
	}
	if old := without(before, principals); len(old) > 0 {
		results, err := a.adm.DeleteACLs(ctx, acls(old))
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil {
				return fmt.Errorf("no longer allow %v: %w", old, r.Err)
			}
		}
	}
	return a.awaitAllowed(ctx, op, kind, name, principals)
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

// awaitAllowed asks every broker: each decides by what it has heard.
func (a *Admin) awaitAllowed(ctx context.Context, op kadm.ACLOperation, kind kmsg.ACLResourceType, name string, principals []string) error {
	want := slices.Sorted(slices.Values(principals))
	return poll(ctx, "every broker to know", func(ctx context.Context) error {
		brokers, err := a.adm.BrokerMetadata(ctx)
		if err != nil {
			return err
		}
		for _, id := range brokers.Brokers.NodeIDs() {
			got, err := a.allowed(ctx, a.cl.Broker(int(id)), op, kind, name)
			if err != nil {
				return fmt.Errorf("ask broker %d: %w", id, err)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				return fmt.Errorf("broker %d lets %v", id, got)
			}
		}
		return nil
	})
}

// allowed are the principals that ACLs let do something.
func (a *Admin) allowed(ctx context.Context, ask kmsg.Requestor, op kadm.ACLOperation, kind kmsg.ACLResourceType, name string) ([]string, error) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourceName = kind, &name
	req.Operation, req.PermissionType = op, kmsg.ACLPermissionTypeAllow
	resp, err := req.RequestWith(ctx, ask)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return nil, err
	}
	var principals []string
	for _, r := range resp.Resources {
		for _, acl := range r.ACLs {
			principals = append(principals, acl.Principal)
		}
	}
	return principals, nil
}
