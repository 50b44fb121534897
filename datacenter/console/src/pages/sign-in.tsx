// Signing in: with an account, or with a token that was pasted.

import {
  ActionGroup,
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  Form,
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  TextInput,
} from '@patternfly/react-core';
import type { FormEvent } from 'react';
import { useEffect, useState } from 'react';

import type { ApiFailure } from '../api/client';
import { call } from '../api/client';
import { asFailure } from '../api/poll';
import mark from '../mark.svg';
import { sentence } from '../model/units';
import { find, signIn, takeUp } from '../session';

export function SignInPage({ ended }: { ended: string | undefined }) {
  const [name, setName] = useState('');
  const [password, setPassword] = useState('');
  const [code, setCode] = useState('');
  const [token, setToken] = useState('');
  const [byToken, setByToken] = useState(false);
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<ApiFailure>();
  useEffect(() => {
    document.title = 'Sign in – Splice';
    void find(() => call('GET /v1/session', {}));
  }, []);

  const whole = byToken ? token.trim() !== '' : name.trim() !== '' && password !== '';
  const submit = async (event: FormEvent): Promise<void> => {
    event.preventDefault();
    if (busy || !whole) return;
    setBusy(true);
    try {
      if (byToken) await signIn(token, () => call('GET /v1/status', {}));
      else {
        const body = { name: name.trim(), password, code: code.trim() === '' ? null : code.trim() };
        await takeUp(() => call('POST /v1/log-in', { body }));
      }
    } catch (error) {
      setFailure(asFailure(error));
      setBusy(false);
    }
  };
  const other = (): void => {
    setByToken(!byToken);
    setFailure(undefined);
  };
  const validated = failure?.code === 'unauthenticated' ? 'error' : 'default';

  return (
    <div className="splice-sign-in">
      <main>
        <Card isLarge>
          <CardTitle component="h1">
            <span className="splice-brand">
              <img src={mark} alt="" />
              Splice
            </span>
          </CardTitle>
          <CardBody>
            <Form onSubmit={(event) => void submit(event)}>
              {ended && !failure && <Alert isInline component="p" variant="info" title={`You were signed out: ${ended}`} />}
              {failure && (
                <Alert isInline component="p" variant="danger" title={sentence(failure.message)} role="alert">
                  {failure.help && sentence(failure.help)}
                </Alert>
              )}
              {byToken ? (
                <FormGroup label="API token" fieldId="token" isRequired>
                  <TextInput
                    id="token"
                    type="password"
                    autoComplete="off"
                    isRequired
                    autoFocus
                    value={token}
                    onChange={(_, value) => setToken(value)}
                    validated={validated}
                    aria-describedby="token-help"
                  />
                  <FormHelperText>
                    <HelperText id="token-help">
                      <HelperTextItem>
                        One of <code>splice token create</code>, or that of <code>cli.toml</code> in the datacenter&rsquo;s data folder. This tab keeps it until it is
                        closed.
                      </HelperTextItem>
                    </HelperText>
                  </FormHelperText>
                </FormGroup>
              ) : (
                <>
                  <FormGroup label="Name" fieldId="name" isRequired>
                    <TextInput
                      id="name"
                      autoComplete="username"
                      isRequired
                      // The first thing that is to be done here.
                      autoFocus
                      value={name}
                      onChange={(_, value) => setName(value)}
                      validated={validated}
                    />
                  </FormGroup>
                  <FormGroup label="Password" fieldId="password" isRequired>
                    <TextInput
                      id="password"
                      type="password"
                      autoComplete="current-password"
                      isRequired
                      value={password}
                      onChange={(_, value) => setPassword(value)}
                      validated={validated}
                    />
                  </FormGroup>
                  <FormGroup label="Code" fieldId="code">
                    <TextInput
                      id="code"
                      inputMode="numeric"
                      autoComplete="one-time-code"
                      value={code}
                      onChange={(_, value) => setCode(value)}
                      validated={validated}
                      aria-describedby="code-help"
                    />
                    <FormHelperText>
                      <HelperText id="code-help">
                        <HelperTextItem>Of the second factor, where the account has one.</HelperTextItem>
                      </HelperText>
                    </FormHelperText>
                  </FormGroup>
                </>
              )}
              <ActionGroup>
                <Button type="submit" isBlock isLoading={busy} isDisabled={busy || !whole}>
                  Sign in
                </Button>
                <Button type="button" variant="link" isBlock onClick={other}>
                  {byToken ? 'Use an account' : 'Use an API token'}
                </Button>
              </ActionGroup>
            </Form>
          </CardBody>
        </Card>
      </main>
    </div>
  );
}
