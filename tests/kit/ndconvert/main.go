// A converter for tests: the conversion library of nydus-snapshotter, which nerdctl and others use,
// over a content store of its own.
//
//	ndconvert -w WORK_DIR -b NYDUS_IMAGE [-zran] [-merge] [-referrer] SOURCE TARGET
//
// Registries on the loopback are spoken to without TLS.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	nydus "github.com/containerd/nydus-snapshotter/pkg/converter"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
)

// labels are kept in memory: the library finds converted layers by them.
type labels struct {
	lock sync.Mutex
	all  map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	found := map[string]string{}
	for k, v := range l.all[d] {
		found[k] = v
	}
	return found, nil
}

func (l *labels) Set(d digest.Digest, values map[string]string) error {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.all[d] = values
	return nil
}

func (l *labels) Update(d digest.Digest, values map[string]string) (map[string]string, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if l.all[d] == nil {
		l.all[d] = map[string]string{}
	}
	for k, v := range values {
		if v == "" {
			delete(l.all[d], k)
		} else {
			l.all[d][k] = v
		}
	}
	return l.all[d], nil
}

const prefetch = "/" // what nydusify passes unless it is told otherwise

func main() {
	work := flag.String("w", "", "work directory")
	builder := flag.String("b", "nydus-image", "the builder")
	zran := flag.Bool("zran", false, "refer to the gzip layers")
	merge := flag.Bool("merge", false, "an index of both images")
	referrer := flag.Bool("referrer", false, "name the source as subject")
	flag.Parse()
	pack := nydus.PackOption{
		WorkDir: *work, BuilderPath: *builder, FsVersion: "6", OCIRef: *zran,
		PrefetchPatterns: prefetch,
	}
	bind := nydus.MergeOption{
		WorkDir: *work, BuilderPath: *builder, FsVersion: "6", OCI: true, OCIRef: *zran,
		MergeManifest: *merge, WithReferrer: *referrer, PrefetchPatterns: prefetch,
	}
	if err := convert(*work, pack, bind, flag.Arg(0), flag.Arg(1)); err != nil {
		fmt.Fprintln(os.Stderr, "ndconvert:", err)
		os.Exit(1)
	}
}

func convert(work string, pack nydus.PackOption, bind nydus.MergeOption, source, target string) error {
	ctx := namespaces.WithNamespace(context.Background(), "default")
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	kept := &labels{all: map[digest.Digest]map[string]string{}}
	store, err := local.NewLabeledStore(filepath.Join(work, "store"), kept)
	if err != nil {
		return err
	}
	name, root, err := resolver.Resolve(ctx, source)
	if err != nil {
		return err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return err
	}
	handlers := images.Handlers(remotes.FetchHandler(store, fetcher), images.ChildrenHandler(store))
	if err := images.Dispatch(ctx, handlers, nil, root); err != nil {
		return err
	}
	hooks := converter.ConvertHooks{PostConvertHook: nydus.ConvertHookFunc(bind)}
	run := converter.IndexConvertFuncWithHook(
		nydus.LayerConvertFunc(pack), true, platforms.All, hooks)
	made, err := run(ctx, store, root)
	if err != nil {
		return err
	}
	if made == nil {
		return fmt.Errorf("%s is converted already", source)
	}
	pusher, err := resolver.Pusher(ctx, target)
	if err != nil {
		return err
	}
	var provider content.Store = store
	return remotes.PushContent(ctx, pusher, *made, provider, nil, platforms.All, nil)
}
