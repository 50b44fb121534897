// Signing in. Today with an API token; the form is what changes when people have accounts.

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
import { signIn } from '../session';

export function SignInPage({ ended }: { ended: string | undefined }) {
  const [token, setToken] = useState('');
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<ApiFailure>();
  useEffect(() => {
    document.title = 'Sign in – Splice';
  }, []);

  const submit = async (event: FormEvent): Promise<void> => {
    event.preventDefault();
    if (busy || token.trim() === '') return;
    setBusy(true);
    try {
      await signIn(token, () => call('GET /v1/status', {}));
    } catch (error) {
      setFailure(asFailure(error));
      setBusy(false);
    }
  };

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
              <FormGroup label="API token" fieldId="token" isRequired>
                <TextInput
                  id="token"
                  type="password"
                  autoComplete="off"
                  isRequired
                  // The one thing that can be done here.
                  autoFocus
                  value={token}
                  onChange={(_, value) => setToken(value)}
                  validated={failure?.code === 'unauthenticated' ? 'error' : 'default'}
                  aria-describedby="token-help"
                />
                <FormHelperText>
                  <HelperText id="token-help">
                    <HelperTextItem>
                      It stands in <code>cli.toml</code> in the datacenter&rsquo;s data folder. This tab keeps it until it is closed.
                    </HelperTextItem>
                  </HelperText>
                </FormHelperText>
              </FormGroup>
              <ActionGroup>
                <Button type="submit" isBlock isLoading={busy} isDisabled={busy || token.trim() === ''}>
                  Sign in
                </Button>
              </ActionGroup>
            </Form>
          </CardBody>
        </Card>
      </main>
    </div>
  );
}
