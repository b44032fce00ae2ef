package main

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/provider"
)

// completionFlag is the last argument of the scripts that the command completion
// prints. The word before completionFlag is the word to complete if the word begins
// with a dash; otherwise the word to complete is missing, and the shell selects from
// the answer.
const completionFlag = "--generate-shell-completion"

// valuesOf returns the values of a flag of a command for completion. The list is empty for a flag
// with any other values, which the shell completes as file names.
func valuesOf(command, flag string) []string {
	switch flag {
	case "mode":
		if command == "submit" {
			return batchModes
		}
		return modes
	case "flex-fallback":
		return flexFallbacks
	case "log-format":
		return []string{"auto", "json", "text"}
	case "log-level":
		return []string{"debug", "info", "warn", "error"}
	case "escalate":
		return escalations
	case "files":
		return filePolicies
	case "provider":
		return provider.Names()
	case "behavior":
		return strings.Split(behaviorNames(), ", ")
	case "client-headers":
		return []string{"on", "off"}
	case "grace", "abandon-after":
		return []string{"never"}
	case "journal":
		return []string{noJournal}
	}
	return nil
}

// completeLine prints the possible next words of a command line, each with a
// description after a colon. Arguments of the program of run are left to the shell.
func (p process) completeLine(c *cli.Command, words []string) {
	flags := c.Flags
	for i := 0; i < len(words); i++ {
		word, last := words[i], i == len(words)-1
		switch {
		case word == "--":
			if c.Name == "run" && last {
				p.printPrograms(p.stdout)
			}
			return
		case strings.HasPrefix(word, "-"):
			name, _, joined := strings.Cut(word, "=")
			flag := flagNamed(flags, strings.TrimLeft(name, "-"))
			switch {
			case joined && last && flag != nil && takesValue(flag):
				for _, value := range valuesOf(c.Name, flag.Names()[0]) {
					printWords(p.stdout, []string{name + "=" + value})
				}
				return
			case joined: // the value is part of the word
			case last && flag != nil && takesValue(flag):
				printWords(p.stdout, valuesOf(c.Name, flag.Names()[0]))
				return
			case last:
				printFlags(p.stdout, flags, word)
				return
			case flag != nil && takesValue(flag):
				i++ // the value
			}
		default:
			if c = c.Command(word); c == nil {
				return
			}
			flags = slices.Concat(c.Flags, flags)
		}
	}
	for _, sub := range c.Commands {
		if !sub.Hidden {
			fmt.Fprintf(p.stdout, "%s:%s\n", sub.Name, sub.Usage)
		}
	}
	if c.Name == "run" {
		p.printPrograms(p.stdout)
	}
}

func printWords(w io.Writer, words []string) {
	for _, word := range words {
		fmt.Fprintln(w, printableLine(word))
	}
}

// flagNamed returns the flag with the name, or nil.
func flagNamed(flags []cli.Flag, name string) cli.Flag {
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil
	}
	return flags[i]
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue() && !isSwitch(f)
}

// isSwitch reports whether a flag with a value may be given without the value.
func isSwitch(f cli.Flag) bool {
	g, ok := f.(*cli.GenericFlag)
	if !ok {
		return false
	}
	b, ok := g.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// printFlags prints the flags that begin with word.
func printFlags(w io.Writer, flags []cli.Flag, word string) {
	for _, f := range flags {
		name := "--" + f.Names()[0]
		if d, ok := f.(cli.DocGenerationFlag); ok && strings.HasPrefix(name, word) {
			_, usage := placeholderOf(d.GetUsage())
			fmt.Fprintf(w, "%s:%s\n", name, usage)
		}
	}
}

// printPrograms prints the names of the programs in PATH.
func (p process) printPrograms(w io.Writer) {
	var names []string
	for _, folder := range filepath.SplitList(p.getenv("PATH")) {
		entries, _ := os.ReadDir(folder) // a directory of PATH may be missing
		for _, e := range entries {
			if info, err := os.Stat(filepath.Join(folder, e.Name())); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	printWords(w, slices.Compact(names))
}

// completionCommand prints the completion scripts. The library adds a command of the
// same name when the command runs; this command is for the completion of command
// lines.
func completionCommand() *cli.Command {
	c := &cli.Command{Name: "completion", Usage: completionUsage}
	for _, shell := range []string{"bash", "zsh", "fish", "pwsh"} {
		c.Commands = append(c.Commands, &cli.Command{Name: shell, Usage: "print the script for " + shell})
	}
	return c
}

// scripts has the completion scripts, which replace those of the library. The library's
// script for bash needs another package, the script for fish completes no paths, the
// script for PowerShell runs the argument to complete as a command, and no script completes
// the path in --flag=path.
//
//go:embed completion.bash completion.zsh completion.fish completion.ps1
var scripts embed.FS

// configureCompletion adapts the completion command of the library.
func (p process) configureCompletion(c *cli.Command) {
	c.Hidden = false
	c.Usage = completionUsage
	c.Description = completionDescription
	c.OnUsageError = badUsage
	for _, sub := range c.Commands {
		sub.Usage = "print the script for " + sub.Name
		sub.OnUsageError = badUsage
		extension := cmp.Or(map[string]string{"pwsh": "ps1"}[sub.Name], sub.Name)
		sub.Action = func(context.Context, *cli.Command) error {
			script, err := scripts.ReadFile("completion." + extension)
			if err == nil {
				_, err = p.stdout.Write(script)
			}
			return err
		}
	}
	c.Action = func(_ context.Context, c *cli.Command) error {
		if shell := c.Args().First(); shell != "" {
			return usagef("there is no completion script for %q; there are scripts for bash, zsh, fish and pwsh", shell)
		}
		return cli.ShowSubcommandHelp(c)
	}
}

const (
	completionUsage = "print a completion script for bash, zsh, fish or pwsh"

	completionDescription = `A shell that has run the script completes commands, flags, the values of flags
and, after run --, programs. Everything else is completed as a path.

   bash, in ~/.bashrc:        source <(autobatcher completion bash)
   zsh, in ~/.zshrc:          source <(autobatcher completion zsh)
   fish:                      autobatcher completion fish > ~/.config/fish/completions/autobatcher.fish
   PowerShell, in $PROFILE:   autobatcher completion pwsh | Out-String | Invoke-Expression

In zsh, the line comes after compinit.`
)
