package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
)

func configCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Look at the configuration file",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(validateCommand(f), rbacCommand(f))
	return cmd
}

func validateCommand(f *flags) *cobra.Command {
	var pod bool
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Say everything that is wrong with the configuration file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var env func(string) string
			if pod {
				env = os.Getenv
			}
			c, err := config.Load(f.config, env)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good: %d identities, %d targets\n", f.config, len(c.Identities), len(c.Targets))
			return err
		},
	}
	cmd.Flags().BoolVar(&pod, "environment", false, "require of this environment what the pod's would add, such as AZURE_CLIENT_ID")
	return cmd
}

func rbacCommand(f *flags) *cobra.Command {
	account := types.NamespacedName{}
	cmd := &cobra.Command{
		Use:   "rbac",
		Short: "Print the rights that the configuration needs: Roles by resource name, and the admission policy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(f.config, nil)
			if err != nil {
				return err
			}
			out, err := rbac.YAML(rbac.Objects(c, account))
			if err != nil {
				return failure{err}
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	cmd.Flags().StringVar(&account.Namespace, "namespace", "flux-system", "namespace of the ServiceAccount")
	cmd.Flags().StringVar(&account.Name, "service-account", "flux-token-refresher", "name of the ServiceAccount")
	return cmd
}
