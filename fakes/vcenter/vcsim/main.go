// SPDX-License-Identifier: MIT

// Command vcsim runs the stock simulator of govmomi, at the version that go.mod pins.
//
// The stock program can not be installed by version with the go tool, since it is a module of its own with a replace
// directive; this one builds from the released library. Flags that it has carry the names and meanings of the stock
// program's, so that a released binary, the released image and this program are interchangeable.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/types"

	// Endpoints that register themselves.
	_ "github.com/vmware/govmomi/cns/simulator"
	_ "github.com/vmware/govmomi/eam/simulator"
	_ "github.com/vmware/govmomi/lookup/simulator"
	_ "github.com/vmware/govmomi/pbm/simulator"
	_ "github.com/vmware/govmomi/ssoadmin/simulator"
	_ "github.com/vmware/govmomi/sts/simulator"
	_ "github.com/vmware/govmomi/vapi/appliance/simulator"
	_ "github.com/vmware/govmomi/vapi/cis/tasks/simulator"
	_ "github.com/vmware/govmomi/vapi/cluster/simulator"
	_ "github.com/vmware/govmomi/vapi/crypto/simulator"
	_ "github.com/vmware/govmomi/vapi/esx/settings/simulator"
	_ "github.com/vmware/govmomi/vapi/namespace/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
	_ "github.com/vmware/govmomi/vapi/vcenter/consumptiondomains/simulator"
	_ "github.com/vmware/govmomi/vapi/vm/simulator"
	_ "github.com/vmware/govmomi/vsan/simulator"
	_ "github.com/vmware/govmomi/vslm/simulator"
)

type options struct {
	listen, username, password, methodDelay, announce, load string
	tlsCert, tlsKey                                         string
	tls, esx, stdinExit                                     bool
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("vcsim: ")
	model := simulator.VPX()
	opts := parse(model)
	if flag.Arg(0) == "version" {
		fmt.Println("Build Version: v0.56.0 (built from the released library)")
		return
	}
	if err := run(model, opts); err != nil {
		log.Fatal(err)
	}
}

func parse(m *simulator.Model) *options {
	o := new(options)
	counts := []struct {
		name string
		to   *int
	}{
		{"dc", &m.Datacenter}, {"cluster", &m.Cluster}, {"host", &m.ClusterHost}, {"standalone-host", &m.Host},
		{"ds", &m.Datastore}, {"vm", &m.Machine}, {"pool", &m.Pool}, {"app", &m.App}, {"pod", &m.Pod},
		{"folder", &m.Folder}, {"pg", &m.Portgroup}, {"pg-nsx", &m.PortgroupNSX}, {"nsx", &m.OpaqueNetwork},
		{"delay", &m.DelayConfig.Delay},
	}
	for _, c := range counts {
		flag.IntVar(c.to, c.name, *c.to, "as the stock program's -"+c.name)
	}
	flag.BoolVar(&m.Autostart, "autostart", m.Autostart, "power on the VMs of the model")
	flag.Float64Var(&m.DelayConfig.DelayJitter, "delay-jitter", 0, "variation of -delay")
	flag.StringVar(&m.ServiceContent.About.ApiVersion, "api-version", m.ServiceContent.About.ApiVersion, "API version")
	flag.StringVar(&o.listen, "l", "127.0.0.1:8989", "address to listen on; port 0 picks one")
	flag.StringVar(&o.username, "username", "", "login name (default: any)")
	flag.StringVar(&o.password, "password", "", "password, or a file that holds it (default: any)")
	flag.StringVar(&o.methodDelay, "method-delay", "", "name:milliseconds,name:milliseconds")
	flag.StringVar(&o.announce, "E", "-", "where the line with the URL goes: - or a fifo")
	flag.StringVar(&o.load, "load", "", "folder of a saved model")
	flag.BoolVar(&o.tls, "tls", true, "serve TLS")
	flag.StringVar(&o.tlsCert, "tlscert", "", "certificate file")
	flag.StringVar(&o.tlsKey, "tlskey", "", "key file")
	flag.BoolVar(&o.esx, "esx", false, "one ESX host instead of a vCenter")
	flag.BoolVar(&o.stdinExit, "stdinexit", false, "end when standard input has a byte or ends")
	flag.Parse()
	return o
}

func run(vpx *simulator.Model, o *options) error {
	if err := templateAddress(o.listen); err != nil {
		return err
	}
	model := vpx
	if o.esx {
		// About stays that of the ESX model but for the version asked for; counts that an ESX host knows are kept.
		model = simulator.ESX()
		model.ServiceContent.About.ApiVersion = vpx.ServiceContent.About.ApiVersion
		model.Datastore, model.Machine, model.Autostart = vpx.Datastore, vpx.Machine, vpx.Autostart
		model.DelayConfig = vpx.DelayConfig
	}
	delays, err := parseDelays(o.methodDelay)
	if err != nil {
		return err
	}
	model.DelayConfig.MethodDelay = delays
	simulator.TaskDelay.MethodDelay = delays
	model.ServiceContent.About.FullName += " (govmomi simulator)"
	model.ServiceContent.About.OsType = runtime.GOOS + "-" + runtime.GOARCH
	esx.HostSystem.Summary.Hardware.Vendor += " (govmomi simulator)"

	if o.load == "" {
		err = model.Create()
	} else {
		err = model.Load(o.load)
	}
	if err != nil {
		return err // a model that is not there can not be removed either
	}
	defer model.Remove()
	model.Service.RegisterEndpoints = true
	model.Service.Listen = &url.URL{Host: o.listen}
	if o.username != "" {
		password, err := session.Secret(o.password)
		if err != nil {
			return err
		}
		model.Service.Listen.User = url.UserPassword(o.username, password)
	}
	if o.tls {
		model.Service.TLS = new(tls.Config)
		if o.tlsCert != "" {
			pair, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
			if err != nil {
				return err
			}
			model.Service.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	model.Service.ServeMux = http.DefaultServeMux
	server := model.Service.NewServer()
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	if err := announce(o.announce, server.URL); err != nil {
		return err
	}
	if o.stdinExit {
		go func() {
			_, _ = os.Stdin.Read(make([]byte, 1))
			end <- syscall.SIGTERM
		}()
	}
	<-end
	return nil
}

// announce says where the server listens, as an assignment for a shell.
func announce(to string, u *url.URL) error {
	out := os.Stdout
	if to != "-" {
		file, err := os.OpenFile(to, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	_, err := fmt.Fprintf(out, "export GOVC_URL=%s GOVC_SIM_PID=%d\n", u, os.Getpid())
	return err
}

func parseDelays(text string) (map[string]int, error) {
	if text == "" {
		return nil, nil
	}
	delays := make(map[string]int)
	for _, part := range strings.Split(text, ",") {
		name, value, found := strings.Cut(strings.TrimSpace(part), ":")
		ms, err := strconv.Atoi(value)
		if !found || err != nil {
			return nil, fmt.Errorf("-method-delay: not name:milliseconds: %q", part)
		}
		delays[name] = ms
	}
	return delays, nil
}

// templateAddress makes hosts of the model carry the listening address, as the stock program does.
func templateAddress(listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("-l: %w", err)
	}
	esx.HostSystem.Summary.ManagementServerIp = host
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("-l: port %q: %w", port, err)
	}
	if number != 0 {
		esx.HostSystem.Summary.Config.Port = int32(number)
	}
	groups := [][]types.HostVirtualNic{esx.HostConfigInfo.Network.Vnic, esx.HostConfigInfo.Vmotion.NetConfig.CandidateVnic}
	for _, group := range esx.HostConfigInfo.VirtualNicManagerInfo.NetConfig {
		groups = append(groups, group.CandidateVnic)
	}
	for _, group := range groups {
		for i := range group {
			group[i].Spec.Ip.IpAddress = host
		}
	}
	return nil
}
