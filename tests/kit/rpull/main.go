// A pull client for tests: resolve, fetch only what is wanted, unpack through a remote snapshotter.
//
//	rpull -a CONTAINERD_SOCKET -s SNAPSHOTTER [-n NAMESPACE] REFERENCE
//
// Debian's ctr cannot pass the labels that a remote snapshotter needs.  Registries on the loopback
// are spoken to without TLS.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
)

func main() {
	address := flag.String("a", "/run/containerd/containerd.sock", "containerd's socket")
	snapshotter := flag.String("s", "nydus", "the snapshotter that unpacks")
	namespace := flag.String("n", "default", "containerd's namespace")
	flag.Parse()
	if err := pull(*address, *snapshotter, *namespace, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "rpull:", err)
		os.Exit(1)
	}
}

func pull(address, snapshotter, namespace, reference string) error {
	client, err := containerd.New(address)
	if err != nil {
		return err
	}
	defer client.Close()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	image, err := client.Pull(ctx, reference,
		containerd.WithResolver(resolver),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(snapshotter),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(reference)),
	)
	if err != nil {
		return err
	}
	fmt.Println(image.Name(), image.Target().Digest)
	return nil
}
