// SPDX-License-Identifier: Apache-2.0

// The shortest relay that the usual libraries make: reads a report from a unix socket, unmarshals it,
// keeps it, marshals it and calls the gRPC server. No framing, no limits, no retries. It stands in for
// the reference, which did this in Go.
//
//	go_relay SOCKET PORT
//
// Built and measured by tests/bench/go_relay.sh.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"vsr/sensor"
	"vsr/virtualmachine"
)

const (
	method = "/sensor.VirtualMachineIndexReportService/UpsertVirtualMachineIndexReport"
	limit  = 16 << 20
)

// Debian 12's grpc-go brings the codec of an older protobuf.
type codec struct{}

func (codec) Marshal(v interface{}) ([]byte, error)   { return proto.Marshal(v.(proto.Message)) }
func (codec) Unmarshal(b []byte, v interface{}) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (codec) Name() string                            { return "proto" }

func receive(l net.Listener) (*virtualmachine.VMReport, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	data, err := io.ReadAll(io.LimitReader(c, limit))
	if err != nil {
		return nil, err
	}
	report := &virtualmachine.VMReport{}
	return report, proto.Unmarshal(data, report)
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: go_relay SOCKET PORT")
	}
	server, err := grpc.Dial("127.0.0.1:"+os.Args[2], grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")

	cache := map[string]*virtualmachine.VMReport{}
	for {
		report, err := receive(l)
		if err != nil {
			log.Fatal(err)
		}
		cache[report.IndexReport.VsockCid] = report
		err = server.Invoke(context.Background(), method,
			&sensor.UpsertVirtualMachineIndexReportRequest{
				IndexReport:    report.IndexReport,
				DiscoveredData: report.DiscoveredData,
			},
			&sensor.UpsertVirtualMachineIndexReportResponse{}, grpc.ForceCodec(codec{}))
		if err != nil {
			log.Fatal(err)
		}
	}
}
