// Deployfiles reads the files of deploy/ with the libraries of the programs that will
// read them:
//
//	deployfiles manifests < manifests.yaml    as Kubernetes reads them, and strictly
//	deployfiles compose FILE                  as Docker Compose reads the file
//
// A field that does not exist, a field that stands twice, and a value of the wrong type
// are errors. So is a Service, a volume or a port that nothing has.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "manifests":
		err = manifests(os.Stdin)
	case len(args) == 2 && args[0] == "compose":
		err = compose(args[1])
	default:
		err = errors.New("usage: deployfiles manifests < FILE | deployfiles compose FILE")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// compose loads a compose file, with the variables of the environment.
func compose(file string) error {
	o, err := cli.NewProjectOptions([]string{file}, cli.WithOsEnv)
	if err != nil {
		return err
	}
	project, err := o.LoadProject(context.Background())
	if err == nil && len(project.Services) == 0 {
		err = errors.New("no service")
	}
	return err
}

// manifests decodes the documents of a YAML file, and checks what they say of each other.
func manifests(r io.Reader) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, apps.AddToScheme, networking.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(r))
	var deployments []*apps.Deployment
	var services []*core.Service
	for n := 1; ; n++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		switch object := object.(type) {
		case *apps.Deployment:
			deployments = append(deployments, object)
		case *core.Service:
			services = append(services, object)
		}
	}
	if len(deployments) == 0 || len(services) == 0 {
		return errors.New("a Deployment or a Service is missing")
	}
	for _, d := range deployments {
		if err := checkPods(d); err != nil {
			return fmt.Errorf("deployment %s: %w", d.Name, err)
		}
		for _, s := range services {
			if err := checkService(s, d); err != nil {
				return fmt.Errorf("service %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

// checkPods checks that a Deployment selects its pods, and that each mount has a volume.
func checkPods(d *apps.Deployment) error {
	pod := d.Spec.Template
	if !labels.SelectorFromSet(d.Spec.Selector.MatchLabels).Matches(labels.Set(pod.Labels)) {
		return errors.New("the selector does not select the pods")
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range pod.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				return fmt.Errorf("the container %s mounts the volume %s, which does not exist", c.Name, m.Name)
			}
		}
		for _, probe := range []*core.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if probe != nil && probe.HTTPGet != nil && !hasPort(pod.Spec, probe.HTTPGet.Port) {
				return fmt.Errorf("a probe of the container %s asks at port %s", c.Name, probe.HTTPGet.Port.String())
			}
		}
	}
	return nil
}

// checkService checks that a Service leads to ports of a Deployment's pods.
func checkService(s *core.Service, d *apps.Deployment) error {
	if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) {
		return errors.New("the selector does not select the pods")
	}
	for _, p := range s.Spec.Ports {
		target := p.TargetPort
		if target == (intstr.IntOrString{}) {
			target = intstr.FromInt32(p.Port)
		}
		if !hasPort(d.Spec.Template.Spec, target) {
			return fmt.Errorf("no container has the port %s", target.String())
		}
	}
	return nil
}

// hasPort reports whether a container has the port, by name or number.
func hasPort(pod core.PodSpec, port intstr.IntOrString) bool {
	for _, c := range pod.Containers {
		for _, p := range c.Ports {
			if port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
				return true
			}
		}
	}
	return false
}
