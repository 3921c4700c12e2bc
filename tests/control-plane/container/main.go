// The one program inside the containers of the boot tests, both the sandbox's (pause) and the workload's: their images
// are made from it and from nothing else. It lives until it is told to end, and then ends as it should.
//
// With an argument it also listens there, for a probe, so that a pod is Ready only with a network of its own.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	if len(os.Args) > 1 {
		listener, err := net.Listen("tcp", os.Args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go answer(listener)
	}
	fmt.Println("begun")
	<-told
	fmt.Println("ended as told")
}

func answer(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		connection.Close()
	}
}
