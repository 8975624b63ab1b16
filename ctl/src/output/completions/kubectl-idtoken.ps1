# PowerShell completion of kubectl-idtoken.
Register-ArgumentCompleter -Native -CommandName 'kubectl-idtoken' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
    if ($wordToComplete -eq '') {
        # Before 7.3, an empty argument is passed on only in quotes of its own.
        $words += $(if ($PSNativeCommandArgumentPassing -in 'Standard', 'Windows') { '' } else { '""' })
    }
    & kubectl-idtoken __complete @words 2>$null | Where-Object { $_ -notmatch '^:\d+$' } | ForEach-Object {
        $name, $text = $_ -split "`t", 2
        if (-not $text) { $text = $name }
        [System.Management.Automation.CompletionResult]::new($name, $name, 'ParameterValue', $text)
    }
}
