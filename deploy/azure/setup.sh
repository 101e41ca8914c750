#!/usr/bin/env bash
# Gives flux-token-refresher its identity: a user-assigned managed identity that one ServiceAccount may use, a member of the
# Azure DevOps organization that reads one project and, with --repository, contributes to one repository.
#
# Each step looks first and changes only what is missing or different, so it may be run again at any time, also after it
# failed half-way. --dry-run looks only. It needs the Azure CLI alone (`az login`), in the tenant that the organization is
# connected to; whoever runs it may create managed identities in the resource group, and is a Project Collection
# Administrator in Azure DevOps.
#
# On stdout it says AZURE_CLIENT_ID and AZURE_TENANT_ID; everything else is on stderr.
set -euo pipefail

usage() {
	cat <<'EOF'
usage: setup.sh --organization ORG --project PROJECT --resource-group GROUP (--issuer URL | --aks-cluster NAME) [options]

  --organization ORG          the Azure DevOps organization: ORG of https://dev.azure.com/ORG
  --project PROJECT           its project that holds the repositories
  --repository REPOSITORY     let the identity push to it too, as Flux's image automation does; otherwise it only reads
  --resource-group GROUP      where the managed identity lives
  --location LOCATION         where to create GROUP if it does not exist (westeurope, ...)
  --issuer URL                the cluster's service account issuer
  --aks-cluster NAME          instead of --issuer: ask this AKS cluster for it
  --aks-resource-group GROUP  where that cluster is (default: --resource-group)
  --identity NAME             the managed identity (default: flux-token-refresher)
  --namespace NAME            of the ServiceAccount (default: flux-system)
  --service-account NAME      (default: flux-token-refresher)
  --dry-run                   change nothing; say what would be
EOF
}

# refuse is for what is asked wrongly, fail for what is found wrong.
refuse() {
	trap - EXIT
	echo "setup.sh: $1" >&2
	exit 2
}

fail() {
	echo "setup.sh: $1" >&2
	exit 1
}

organization='' project='' repository='' resource_group='' location='' issuer='' aks_cluster='' aks_resource_group=''
identity=flux-token-refresher namespace=flux-system service_account=flux-token-refresher dry_run=false
audience=api://AzureADTokenExchange

while (($#)); do
	case $1 in
	--dry-run)
		dry_run=true
		shift
		continue
		;;
	-h | --help)
		usage
		exit
		;;
	--organization | --project | --repository | --resource-group | --location | --issuer | --aks-cluster | --aks-resource-group | \
		--identity | --namespace | --service-account) ;;
	*) refuse "unknown argument '$1'; --help lists them" ;;
	esac
	[[ -n ${2-} && ${2-} != --* ]] || refuse "$1 needs a value"
	name=${1#--}
	printf -v "${name//-/_}" %s "$2"
	shift 2
done

# What is used in a URL, a query or JSON below has no character that means something there; project and repository, which may
# have any, are escaped.
check() {
	[[ $2 =~ $3 ]] || refuse "$1 '$2' is not $4"
}
if [[ -z $organization || -z $project || -z $resource_group ]]; then
	usage >&2
	exit 2
fi
check --organization "$organization" '^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$' 'the name of an organization: ORG of https://dev.azure.com/ORG'
check --resource-group "$resource_group" '^[A-Za-z0-9_().-]{1,90}$' 'the name of a resource group'
check --identity "$identity" '^[A-Za-z0-9][A-Za-z0-9_-]{2,127}$' 'the name of a managed identity: 3 to 128 letters, digits, - and _'
check --namespace "$namespace" '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' 'the name of a namespace'
check --service-account "$service_account" '^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$' 'the name of a ServiceAccount'
if [[ -n $issuer && -n $aks_cluster ]]; then
	refuse 'both --issuer and --aks-cluster: give one'
elif [[ -n $issuer ]]; then
	check --issuer "$issuer" '^https://[^[:space:]]+$' 'an https URL: what the cluster says as "issuer" in /.well-known/openid-configuration, to the letter'
elif [[ -z $aks_cluster ]]; then
	refuse 'which cluster? give --issuer or --aks-cluster'
fi

step='the start'
trap '(($? == 0)) || echo "setup.sh: stopped at: $step. Nothing was undone: run it again when that is mended." >&2' EXIT

ok() {
	printf 'ok       %s\n' "$step" >&2
}

# change VERB COMMAND... runs the command, or says what it would run. What it prints is the command's.
change() {
	local verb=$1
	shift
	if $dry_run; then
		printf 'would %s %s:\n        ' "$verb" "$step" >&2
		[[ $1 != devops ]] || set -- az rest --resource "$devops" --method "${@:2:1}" --url "${@:3}"
		printf ' %q' "$@" >&2
		printf '\n' >&2
		return
	fi
	printf '%-8s %s\n' "$verb" "$step" >&2
	"$@"
}

devops=499b84ac-1321-427f-aa17-267ca6975798 # Azure DevOps, as a resource of Entra

# devops METHOD URL [ARGUMENT...] calls the REST API of Azure DevOps with the caller's own token. The devops extension of az
# cannot add a service principal to an organization.
devops() {
	local method=$1 url=$2
	shift 2
	az rest --resource "$devops" --method "$method" --url "$url" --output tsv "$@"
}

escape() {
	local LC_ALL=C text=$1 i character
	for ((i = 0; i < ${#text}; i++)); do
		character=${text:i:1}
		case $character in
		[A-Za-z0-9._~-]) printf %s "$character" ;;
		*) printf '%%%02X' "'$character" ;;
		esac
	done
}

core=https://dev.azure.com/$organization
graph=https://vssps.dev.azure.com/$organization/_apis/graph
entitlements=https://vsaex.dev.azure.com/$organization/_apis
# In every query below a dash is what is not there: az prints null in more than one way.

## What has to be there already is looked for first, so that a wrong name leaves nothing half done.

step='the Azure subscription'
found=$(az account show --query '[name, tenantId]' --output tsv)
{ read -r subscription && read -r tenant_id; } <<<"$found"
step="the Azure subscription $subscription, tenant $tenant_id"
ok

if [[ -n $aks_cluster ]]; then
	step="the issuer of the AKS cluster $aks_cluster"
	issuer=$(az aks show --name "$aks_cluster" --resource-group "${aks_resource_group:-$resource_group}" \
		--query "oidcIssuerProfile.issuerUrl || '-'" --output tsv)
	[[ $issuer != - ]] || fail "it has none: az aks update --name $aks_cluster --resource-group ${aks_resource_group:-$resource_group} --enable-oidc-issuer --enable-workload-identity"
	ok
fi

step="the project $project"
project_id=$(devops get "$core/_apis/projects/$(escape "$project")?api-version=7.1" --query id)
scope=$(devops get "$graph/descriptors/$project_id?api-version=7.1" --query value)
groups="$graph/groups?scopeDescriptor=$scope&api-version=7.1-preview.1"
readers=$(devops get "$groups" --query "value[?displayName=='Readers'].descriptor | [0] || '-'")
[[ $readers != - ]] || fail "it has no group Readers"
ok

if [[ -n $repository ]]; then
	step="the repository $repository"
	repository_id=$(devops get "$core/$project_id/_apis/git/repositories/$(escape "$repository")?api-version=7.1" --query id)
	ok
fi

## Azure: the identity, and who may use it.

step="resource group $resource_group"
if [[ $(az group exists --name "$resource_group" --output json) == true ]]; then
	ok
	found=$(az identity list --resource-group "$resource_group" \
		--query "[?name=='$identity'] | [0].[clientId, principalId, tenantId] || ['-', '-', '-']" --output tsv)
else
	[[ -n $location ]] || refuse "there is no resource group $resource_group: give --location to have it created"
	change create az group create --name "$resource_group" --location "$location" --output none
	found=$'-\n-\n-'
fi
{ read -r client_id && read -r principal_id && read -r identity_tenant; } <<<"$found"

step="managed identity $identity"
credential=-
if [[ $client_id != - ]]; then
	ok
	tenant_id=$identity_tenant
	credential=$(az identity federated-credential list --identity-name "$identity" --resource-group "$resource_group" \
		--query "[?name=='$identity'].join(' ', [issuer, subject, audiences[0]]) | [0] || '-'" --output tsv)
else
	found=$(change create az identity create --name "$identity" --resource-group "$resource_group" \
		--query '[clientId, principalId, tenantId]' --output tsv)
	if ! $dry_run; then
		{ read -r client_id && read -r principal_id && read -r tenant_id; } <<<"$found"
	fi
fi

subject=system:serviceaccount:$namespace:$service_account
step="federated credential $identity for $subject of $issuer"
verb=create
[[ $credential == - ]] || verb=update
if [[ $credential == "$issuer $subject $audience" ]]; then
	ok
else
	change "$verb" az identity federated-credential "$verb" --name "$identity" --identity-name "$identity" \
		--resource-group "$resource_group" --issuer "$issuer" --subject "$subject" --audiences "$audience" --output none
fi

## Azure DevOps: the identity's service principal is a member with a Basic licence, called "express" there.

step="member of the organization $organization, licence Basic"
member=- entitlement=- licence=-
page='' mine="members[?member.originId=='$principal_id']"
while [[ $principal_id != - && $member == - && $page != - ]]; do
	# Members have the managed identity's name as their name; there may be others that contain it.
	found=$(devops get "$entitlements/memberentitlements?api-version=7.1-preview.2&%24filter=$(escape "name eq '$identity'")${page:+&continuationToken=$(escape "$page")}" \
		--query "[$mine.member.descriptor | [0] || '-', $mine.id | [0] || '-', $mine.accessLevel.accountLicenseType | [0] || '-', continuationToken || '-']")
	{ read -r member && read -r entitlement && read -r licence && read -r page; } <<<"$found"
done
basic='{"accountLicenseType":"express","licensingSource":"account"}'
case $licence in
express | advanced | professional | earlyAdopter)
	found=''
	ok
	;;
-)
	found=$(change add devops post "$entitlements/serviceprincipalentitlements?api-version=7.1-preview.1" \
		--body "{\"accessLevel\":$basic,\"servicePrincipal\":{\"origin\":\"aad\",\"originId\":\"$principal_id\",\"subjectKind\":\"servicePrincipal\"}}" \
		--query "[operationResult.isSuccess && 'yes' || 'no', operationResult.errors[0].value || '-', servicePrincipalEntitlement.servicePrincipal.descriptor || '-']")
	;;
*)
	found=$(change update devops patch "$entitlements/serviceprincipalentitlements/$entitlement?api-version=7.1-preview.1" \
		--headers Content-Type=application/json-patch+json \
		--body "[{\"from\":\"\",\"op\":\"replace\",\"path\":\"/accessLevel\",\"value\":$basic}]" \
		--query "[operationResults[0].isSuccess && 'yes' || 'no', operationResults[0].errors[0].value || '-', '$member']")
	;;
esac
if [[ -n $found ]]; then
	# It answers 200 also when it refuses.
	{ read -r success && read -r reason && read -r member; } <<<"$found"
	[[ $success == yes ]] || fail "Azure DevOps refused: $reason
setup.sh: it takes a minute to know a new identity; and the organization has to be connected to the tenant $tenant_id"
fi

# join GROUP makes the identity a member of the group with that descriptor.
join() {
	local joined=0
	if [[ $member != - && $1 != - ]]; then
		joined=$(devops get "$graph/memberships/$member?direction=up&api-version=7.1-preview.1" \
			--query "length(value[?containerDescriptor=='$1'])")
	fi
	if ((joined)); then
		ok
	else
		change add devops put "$graph/memberships/$member/$1?api-version=7.1-preview.1" --query containerDescriptor >/dev/null
	fi
}

step="member of the group Readers of $project"
join "$readers"

if [[ -n $repository ]]; then
	## A group of its own, because the built-in Contributors may push to every repository of the project.
	step="group $identity in $project"
	contributors=$(devops get "$groups" --query "value[?displayName=='$identity'].descriptor | [0] || '-'")
	if [[ $contributors != - ]]; then
		ok
	else
		found=$(change create devops post "$groups" \
			--body "{\"displayName\":\"$identity\",\"description\":\"Flux pushes to $repository_id as one of these\"}" --query descriptor)
		contributors=${found:--}
	fi

	step="member of the group $identity"
	join "$contributors"

	# In the namespace "Git Repositories": GenericRead 2, GenericContribute 4, CreateBranch 16.
	rights=22
	security=2e9eb7ed-3c0a-47d4-87c1-0ffdd275fd87
	step="right of the group $identity to read, contribute and create branches in $repository"
	allowed=0 descriptor=-
	if [[ $contributors != - ]]; then
		# Access control entries name a group by another kind of descriptor than memberships do.
		descriptor=$(devops get "https://vssps.dev.azure.com/$organization/_apis/identities?subjectDescriptors=$contributors&api-version=7.1" \
			--query 'value[0].descriptor')
		allowed=$(devops get "$core/_apis/accesscontrollists/$security?token=repoV2/$project_id/$repository_id&descriptors=$(escape "$descriptor")&api-version=7.1" \
			--query 'sum(value[].acesDictionary.*[].allow)')
	fi
	if (((${allowed%.*} & rights) == rights)); then
		ok
	else
		change add devops post "$core/_apis/accesscontrolentries/$security?api-version=7.1" \
			--body "{\"token\":\"repoV2/$project_id/$repository_id\",\"merge\":true,\"accessControlEntries\":[{\"descriptor\":\"$descriptor\",\"allow\":$rights,\"deny\":0}]}" \
			--query count >/dev/null
	fi
fi

if $dry_run; then
	echo 'nothing was changed; a dash stands for what is known only then' >&2
	exit
fi
if [[ $service_account != flux-token-refresher ]]; then
	cat >&2 <<EOF

Give it to the ServiceAccount:
  kubectl -n $namespace annotate --overwrite serviceaccount $service_account azure.workload.identity/client-id=$client_id azure.workload.identity/tenant-id=$tenant_id
Pods that run as it have to start anew. Where it is the serviceAccount of an identity in the configuration, none do.

EOF
else
	cat >&2 <<EOF

Give it to the ServiceAccount, and have the pods start anew:
  kubectl -n $namespace annotate --overwrite serviceaccount $service_account azure.workload.identity/client-id=$client_id
  kubectl -n $namespace rollout restart deployment $service_account
or, with the Helm chart, which does both, in the release $service_account:
  helm upgrade $service_account deploy/helm/flux-token-refresher --namespace $namespace --reset-then-reuse-values --set workloadIdentity.clientID=$client_id

EOF
fi
echo "AZURE_CLIENT_ID=$client_id"
echo "AZURE_TENANT_ID=$tenant_id"
