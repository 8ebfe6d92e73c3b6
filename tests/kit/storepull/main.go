// Pulls into containers/storage by the libraries of Podman from 5.1 on, which look into an additional
// layer store by digests of tables of contents.
//
//	storepull HOST/REPO:TAG
//
// Pulls, makes a container's layer, mounts it and prints its root; when standard input ends, removes
// both.  All in one process: since containers/storage 1.58 these libraries do not write down the layers that
// they took from a store (layerStore.PutAdditionalLayer sets no location), and another would not find
// them.
// Storage is configured by $CONTAINERS_STORAGE_CONF; signatures are not asked for, and registries are
// spoken to without TLS.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
)

func pull(store storage.Store, name string) error {
	from, err := docker.ParseReference("//" + name)
	if err != nil {
		return err
	}
	to, err := istorage.Transport.ParseStoreReference(store, name)
	if err != nil {
		return err
	}
	anything := &signature.Policy{Default: []signature.PolicyRequirement{
		signature.NewPRInsecureAcceptAnything(),
	}}
	policy, err := signature.NewPolicyContext(anything)
	if err != nil {
		return err
	}
	plain := &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue}
	_, err = copy.Image(context.Background(), policy, to, from, &copy.Options{
		SourceCtx: plain, DestinationCtx: plain, ReportWriter: os.Stderr,
	})
	return err
}

func run(name string) error {
	options, err := storage.DefaultStoreOptions()
	if err != nil {
		return err
	}
	store, err := storage.GetStore(options)
	if err != nil {
		return err
	}
	if err := pull(store, name); err != nil {
		return err
	}
	image, err := store.Image(name)
	if err != nil {
		return err
	}
	container, err := store.CreateContainer("", nil, image.ID, "", "", nil)
	if err != nil {
		return err
	}
	root, err := store.Mount(container.ID, "")
	if err != nil {
		return err
	}
	fmt.Println(root)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if _, err := store.Unmount(container.ID, true); err != nil {
		return err
	}
	if err := store.DeleteContainer(container.ID); err != nil {
		return err
	}
	_, err = store.DeleteImage(image.ID, true)
	return err
}

func main() {
	if reexec.Init() { // a helper of the library's own, in a chroot
		return
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "storepull:", err)
		os.Exit(1)
	}
}
