// What a kubelet does, for tests: pull an image over the CRI, run a pod with one container, print
// the container's log, and take everything away.
//
//	cri -a CONTAINERD_SOCKET [-users FIRST] REFERENCE LOG_DIRECTORY COMMAND...
//
// -users: as with hostUsers: false, in a user namespace whose 65536 ids begin at FIRST outside, and
// with a network of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	address := flag.String("a", "/run/containerd/containerd.sock", "containerd's socket")
	users := flag.Uint("users", 0, "first id outside of the pod's user namespace")
	flag.Parse()
	if flag.NArg() < 3 {
		flag.Usage()
		os.Exit(2)
	}
	code, err := run(*address, uint32(*users), flag.Arg(0), flag.Arg(1), flag.Args()[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(address string, users uint32, reference, logs string, command []string) (int, error) {
	connection, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	images, runtime := cri.NewImageServiceClient(connection), cri.NewRuntimeServiceClient(connection)
	network := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	if users != 0 {
		ids := []*cri.IDMapping{{HostId: users, ContainerId: 0, Length: 65536}}
		network = &cri.NamespaceOption{
			Network:       cri.NamespaceMode_POD,
			UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
		}
	}
	image := &cri.ImageSpec{Image: reference}
	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Uid: "pod", Namespace: "default"},
		LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: network},
		},
	}
	if _, err := images.PullImage(ctx, &cri.PullImageRequest{Image: image, SandboxConfig: pod}); err != nil {
		return 0, fmt.Errorf("pull: %w", err)
	}
	sandbox, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return 0, fmt.Errorf("sandbox: %w", err)
	}
	defer func() {
		id := sandbox.PodSandboxId
		_, stop := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, remove := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		if err := errors.Join(stop, remove); err != nil {
			fmt.Fprintln(os.Stderr, "cri: end of the pod:", err)
		}
		if _, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image}); err != nil {
			fmt.Fprintln(os.Stderr, "cri: removal of the image:", err)
		}
	}()
	security := &cri.LinuxContainerSecurityContext{NamespaceOptions: network}
	container, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: sandbox.PodSandboxId, SandboxConfig: pod,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "one"}, Image: image, Command: command,
			LogPath: "one.log",
			Linux:   &cri.LinuxContainerConfig{SecurityContext: security},
		},
	})
	if err != nil {
		return 0, fmt.Errorf("create: %w", err)
	}
	id := container.ContainerId
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	for {
		answer, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return 0, fmt.Errorf("status: %w", err)
		}
		if answer.Status.State == cri.ContainerState_CONTAINER_EXITED {
			text, err := os.ReadFile(filepath.Join(logs, "one.log"))
			if err != nil {
				return 0, err
			}
			os.Stdout.Write(text)
			return int(answer.Status.ExitCode), nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}
