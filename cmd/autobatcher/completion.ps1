# Completion of autobatcher for PowerShell, version 5.1 or later.

Register-ArgumentCompleter -Native -CommandName autobatcher -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    # The words in front of the word to complete, without their quotes.
    $words = @()
    foreach ($element in $commandAst.CommandElements) {
        if ($element.Extent.EndOffset -ge $cursorPosition) { break }
        if ($element -is [System.Management.Automation.Language.StringConstantExpressionAst]) {
            $words += $element.Value
        } else {
            $words += $element.Extent.Text
        }
    }
    if ($words.Count -eq 0) { return }
    $program = $words[0]
    $request = @($words | Select-Object -Skip 1)
    if ($wordToComplete.StartsWith('-')) { $request += $wordToComplete }
    $request += '--generate-shell-completion'

    # Without a result, PowerShell completes the word as a path.
    & $program $request 2>$null | ForEach-Object {
        $token, $description = $_ -split ':', 2
        if ($token -and $token.StartsWith($wordToComplete, [System.StringComparison]::Ordinal)) {
            if (-not $description) { $description = $token }
            [System.Management.Automation.CompletionResult]::new($token, $token, 'ParameterValue', $description)
        }
    }
}
